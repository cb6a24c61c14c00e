"""Settings that a run folder remembers, added to a command line, so that ``amc run_dir=RUN`` continues.

Hydra's options that say which configuration is read (``--config-dir``) are remembered with them. Without
``stages=`` a command runs the stages of the last command if that was interrupted, otherwise those of the
first command.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from amc.errors import FileError, SettingError
from experiments.command.foreign import (
    Rules,
    code_objection,
    is_choice_of_stages,
    is_override,
    objection,
)
from experiments.command.memory.content import (
    FILE,
    Memory,
    known_memory,
    read_memory,
)
from experiments.command.overrides import (
    key_of,
    option_name,
    text_of,
)

_WEIGHTS = ("model.checkpoint", "model.pretrained", "model.start")
"""Settings of which one at most says where the dense network's weights come from."""
_NOTHING = ("null", "false")
"""Values that take such a setting back."""
_TOLD = 3
"""Remembered settings that a refusal names."""


def with_remembered(arguments: Sequence[str], rules: Rules | None = None) -> list[str]:
    """Add what the run folder remembers that ``arguments`` name; given overrides and options take precedence.

    The remembered ones come first, as the last word counts where one key holds the other: a dictionary, and
    a key in it. Keys of a group are dropped if another option of it is given: they were meant for the former
    one. So are other weights of the dense network if one of ``_WEIGHTS`` is given. A line tells which.

    Args:
        arguments: of the command line.
        rules: what the settings of a folder may be that this user has not signed.

    Raises:
        FileError: ``overrides.json`` is damaged, or missing in a folder that holds results, or it was not
            written by this user and remembers what only the user may decide.
    """
    places = [i for i, a in enumerate(arguments) if "=" in a and key_of(a) == "run_dir"]
    path = text_of(arguments[places[-1]]) if places else None
    if path is None:
        return list(arguments)
    given = {key_of(argument): argument for argument in arguments if "=" in argument}
    memory = known_memory(Path(path))
    stages = memory.unfinished or memory.stages
    old = [o for o in (*memory.overrides, *([stages] if stages else [])) if key_of(o) not in given]
    rules = rules or Rules()
    groups = {key: each for key, each in given.items() if key in rules.groups}
    weights = [given[key] for key in _WEIGHTS if key in given and _gives_weights(given[key])]
    for option in (*_changed(groups, memory.overrides, rules), *weights):
        others = _gives_weights if option in weights else _of_group(key_of(option))
        dropped = [o for o in old if others(o)]
        old = [o for o in old if o not in dropped]
        if dropped:
            print(f"run_dir={path}: {option} takes the place of {', '.join(dropped)}, which it remembered")
    options = _lacking(memory.options, arguments)
    _check_origin([*options, *old], memory, Path(path), rules)
    return [*options, *old, *arguments]


def _lacking(options: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Return those of ``options`` that are not given among ``arguments``."""
    given = set(map(option_name, arguments))
    return [option for option in options if option_name(option) not in given]


def _of_group(group: str) -> Callable[[str], bool]:
    """Return whether an override is one of a key of ``group``."""
    return lambda override: key_of(override).startswith(f"{group}.")


def _gives_weights(override: str) -> bool:
    """Whether an override gives weights of the dense network."""
    return key_of(override) in _WEIGHTS and override.partition("=")[2].lower() not in _NOTHING


def _changed(options: Mapping[str, str], before: Sequence[str], rules: Rules) -> list[str]:
    """Return the options that are others than those of a folder.

    A group that the folder does not remember has the option of its experiment, or the default one.

    Args:
        options: name of a group -> the override that chooses one of it.
        before: the remembered overrides.
        rules: what the options are by default.
    """
    if not options:
        return []
    former = {key_of(override): _option(override) for override in before}
    former = {**rules.options(former.get("experiment")), **former}
    return [each for key, each in options.items() if key not in former or former[key] != _option(each)]


def _option(override: str) -> str:
    """Return the option that an override chooses, quotes removed; ``null`` for none."""
    return text_of(override) or override.partition("=")[2]


def remembered_overrides(folder: Path) -> list[str]:
    """Return the overrides that a run folder remembers, without its stages.

    Raises:
        FileError: as ``with_remembered``, or its job has another configuration than this package's.
    """
    memory = known_memory(folder)
    if memory.options:
        raise FileError(
            f"run_dir={folder} was made with {' '.join(memory.options)}, which only a command can use; "
            "expected a run with the configuration of this package"
        )
    _check_origin(memory.overrides, memory, folder, Rules())
    return [*memory.overrides]


def check_known(folder: Path) -> None:
    """Refuse a folder that holds results of an unknown job, or the jobs of a multirun.

    Raises:
        FileError: as ``with_remembered``.
    """
    known_memory(folder)


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse overrides that would make a run folder unusable which remembers them.

    Raises:
        SettingError: names the override.
    """
    for override in overrides:
        if not _is_memorable(override):
            raise SettingError(
                f"a run folder cannot remember {override[:80]!r}; expected KEY=VALUE, or stages=[train,...]"
            )
        if key_of(override) != "run_dir" and (fault := _encoding_fault(override)) is not None:
            raise SettingError(
                f"{override[:80]!a} is no text in UTF-8 ({fault}); likely cause: the name of a file in "
                "another encoding: give it another name"
            )


def _is_memorable(override: str) -> bool:
    """Whether an override can be read back, as one or as a choice of stages."""
    return is_choice_of_stages(override) if key_of(override) == "stages" else is_override(override)


def _encoding_fault(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.reason
    return None


def check_named(folder: Path, overrides: Sequence[str], options: Sequence[str] = ()) -> None:
    """Refuse a folder as ``check_known`` does, and one that remembers settings which could not be added.

    The path in ``run_dir=runs/${name}`` is known only when the configuration is put together.

    Raises:
        FileError: as ``with_remembered``.
        SettingError: the folder remembers settings that are not given.
    """
    memory = known_memory(folder)
    named = [override for override in overrides if key_of(override) == "run_dir"]
    if named and text_of(named[-1]) is not None:
        return
    given = set(map(key_of, overrides))
    lost = _lacking(memory.options, options)
    if lost := [*lost, *(each for each in memory.overrides if key_of(each) not in given)]:
        more = f" and {len(lost) - _TOLD} more" if len(lost) > _TOLD else ""
        raise SettingError(
            f"{named[-1] if named else 'the run folder'} is a folder that remembers {', '.join(lost[:_TOLD])}"
            f"{more}: write {run_dir(folder)} to use them"
        )


def run_dir(folder: Path) -> str:
    """Return the argument that names a run folder, as it is typed in a shell."""
    return f"run_dir={shlex.quote(str(folder))}"


def goes_on(folder: Path) -> str:
    """Return the end of a message about work that is kept in a run folder."""
    return f"amc {run_dir(folder)} goes on"


def remembered_value(folder: Path, key: str) -> str | None:
    """Return the value of a setting that a run folder remembers, quotes removed; None if it has none.

    Raises:
        FileError: ``overrides.json`` is damaged.
    """
    found = [
        text_of(override) for override in read_memory(folder / FILE).overrides if key_of(override) == key
    ]
    return found[-1] if found else None


def _check_origin(overrides: Sequence[str], memory: Memory, folder: Path, rules: Rules) -> None:
    """Refuse settings of another's folder that are more than data.

    Code of a folder that this user has signed must be given again only where modules lying in the folder
    itself would be imported: the signature does not cover them.

    Raises:
        FileError: names the settings.
    """
    if memory.signed:
        inside = Path.cwd().resolve().is_relative_to(folder.resolve())
        faults = {o: found for o in overrides if inside and (found := code_objection(o, rules))}
    else:
        faults = {o: found for o in overrides if (found := objection(o, folder, rules))}
    if not faults:
        return
    told = [f"{override[:80]} ({reason})" for override, reason in list(faults.items())[:_TOLD]]
    more = f" and {len(faults) - _TOLD} more" if len(faults) > _TOLD else ""
    keys = " ".join(f"{key_of(override)}=..." for override in faults)
    raise FileError(
        f"run_dir={folder} was not made by this user here, and remembers {', '.join(told)}{more}: give "
        f"{keys[:120]} yourself if you trust it, or use another folder"
    )
