"""The identity of a run folder: the overrides that it remembers, so that ``amc run_dir=RUN`` continues.

They are in ``overrides.json``, signed by the user whose command wrote them (``signature``), and with them
goes Hydra's folder ``.hydra``. Hydra's options that say which configuration is read (``--config-dir``) are
remembered with them. A new folder gets its identity before any other file. A refused command
leaves the identity as it was; so does one that fails before it has changed a result. A first command keeps it
as soon as there is anything to go on with. Without ``stages=`` a command runs the stages of the last command
if that was interrupted, otherwise those of the first command. A plan changes no identity: it may give a new
folder its settings, but no stages.
"""

from __future__ import annotations

import json
import os
import shlex
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from amc.budget.budget import KINDS
from amc.errors import AmcError, FileError, SettingError
from amc.files import atomic_write_bytes, atomic_write_text, is_temporary
from amc.reading import read_json
from experiments.command.foreign import (
    Rules,
    code_objection,
    is_choice_of_stages,
    is_override,
    objection,
)
from experiments.command.overrides import (
    absolute,
    is_config_option,
    key_of,
    option_name,
    parsed,
    text_of,
)
from experiments.command.signature import is_signed, sign

FILE = "overrides.json"
HYDRA = ".hydra"
_MULTIRUN = "multirun.yaml"
"""File that Hydra writes into the folder of a multirun."""
_SHAPE = {
    "overrides": [str],
    **dict.fromkeys(("stages?", "unfinished?", "signature?"), (str, None)),
    "options?": [str],
}
_RESULTS = (
    *("*.safetensors", "*.jsonl", "strategy.json", "latency_model.json", "provenance.json", "agent.zip"),
    *("stages/*.json", "pareto/*", "exports/*"),
    *(f"{kind}_*/[!.]*" for kind in (*KINDS, "density")),
)
"""Files of a run folder that another job would overwrite, or take for its own."""
_CACHES = ("evaluations.jsonl", ".ckpt.safetensors")
"""Files that know by themselves which job they are about."""
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
    memory = _remembered(Path(path))
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
    memory = _remembered(folder)
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
    _remembered(folder)


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
    memory = _remembered(folder)
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
    found = [text_of(override) for override in _read(folder / FILE).overrides if key_of(override) == key]
    return found[-1] if found else None


def _check_origin(overrides: Sequence[str], memory: _Memory, folder: Path, rules: Rules) -> None:
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


def begin(
    folder: Path, overrides: Sequence[str], options: Sequence[str] = (), *, paths: Collection[str]
) -> bool:
    """Give a new folder its identity before anything else is in it; return whether it is new.

    Args:
        folder: the run folder.
        overrides: those of the command, which have been checked (``check_overrides``).
        options: Hydra's options that say which configuration the command has.
        paths: as for `remembering`.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError:  # a refused command has just removed the empty folder above
        folder.mkdir(parents=True, exist_ok=True)
    if any(not is_temporary(entry.name) for entry in folder.iterdir()):
        return False
    memory = _memory(overrides, options, paths)
    temporary = folder / f".{FILE}.{uuid.uuid4().hex}.tmp"
    temporary.write_bytes(memory.text().encode())
    try:
        os.link(temporary, folder / FILE)
    except FileExistsError:  # another command was faster
        return False
    except OSError:  # a file system without links
        os.replace(temporary, folder / FILE)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def forget(folder: Path, key: str) -> None:
    """Remove a setting from what a run folder remembers, because its results no longer follow from it.

    Raises:
        FileError: ``overrides.json`` is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return
    memory = _read(path)
    kept = [override for override in memory.overrides if key_of(override) != key]
    if memory.signed and kept != memory.overrides:
        atomic_write_text(path, replace(memory, overrides=kept).text())


class Identity:
    """The identity of a folder during one command; see `remembering`."""

    def __init__(
        self, folder: Path, memory: _Memory, hydra: Mapping[str, str], *, new: bool, plans: bool
    ) -> None:
        self._folder, self._memory, self._hydra = folder, memory, hydra
        self._new = new or not (folder / FILE).exists()
        self._stays = plans and not self._new
        files = [folder / FILE, *(folder / HYDRA / name for name in hydra)]
        self._before = {path: path.read_bytes() if path.exists() else None for path in files}
        self._results = _state(folder)
        self._accepted = False

    @property
    def is_new(self) -> bool:
        """Whether this is the first command of the folder."""
        return self._new

    def accept(self) -> None:
        """Write the identity, once the command has been checked; a plan leaves that of others alone."""
        if self._stays:
            return
        self._accepted = True
        atomic_write_text(self._folder / FILE, self._memory.text())
        for name, text in self._hydra.items():
            (self._folder / HYDRA).mkdir(exist_ok=True)
            atomic_write_text(self._folder / HYDRA / name, text)

    def finish(self) -> None:
        """Forget that the command is unfinished."""
        if self._stays:
            return
        # `forget` may have changed the file since
        memory = _read(self._folder / FILE) if self._accepted else self._memory
        atomic_write_text(self._folder / FILE, replace(memory, unfinished=None).text())

    def restore(self) -> None:
        """Undo ``accept`` if the command has changed no result.

        A new folder that holds anything of the job keeps its identity: no command goes on there without it.
        """
        if _state(self._folder) != self._results or (self._new and _results(self._folder)):
            return
        for path, content in self._before.items():
            if content is None or self._new:
                path.unlink(missing_ok=True)
            elif not path.exists() or path.read_bytes() != content:
                atomic_write_bytes(path, content)


@contextmanager
def remembering(
    folder: Path,
    overrides: Sequence[str],
    options: Sequence[str] = (),
    *,
    paths: Collection[str],
    keep: bool = False,
    new: bool = False,
    hydra: Mapping[str, str] | None = None,
) -> Iterator[Identity]:
    """Store the overrides of a command once it is accepted; see `Identity`.

    Args:
        folder: the run folder.
        overrides: those of the command.
        options: Hydra's options that say which configuration it has.
        paths: keys whose values name files. They are stored as absolute paths, so that a run continues from
            any folder.
        keep: store them in any case, unless there are results of others: the user has not typed the overrides
            of one job of many, and continues it by naming its folder.
        new: the folder has its identity from this very command.
        hydra: names and texts of the files in ``.hydra``.

    Raises:
        FileError: ``overrides.json`` is damaged.
    """
    path = folder / FILE
    memory = _memory(overrides, options, paths)
    if path.exists() and not new:
        memory = replace(memory, stages=_read(path).stages)
    identity = Identity(folder, memory, hydra or {}, new=new, plans=any(map(_only_plans, overrides)))
    keep = keep and not _results(folder)
    if keep:
        identity.accept()
    try:
        yield identity
    except AmcError:
        if not keep:
            identity.restore()
        raise
    identity.finish()


@dataclass(frozen=True)
class _Memory:
    """The contents of ``overrides.json``.

    Attributes:
        overrides: all but ``run_dir``, ``stages`` and ``plan.stages``.
        stages: the override ``stages=`` of the first command; None if that was a plan.
        unfinished: that of the command that runs now or was interrupted.
        options: Hydra's options that say which configuration is read, with absolute folders.
        signed: whether this user wrote them.
    """

    overrides: list[str] = field(default_factory=list)
    stages: str | None = None
    unfinished: str | None = None
    options: list[str] = field(default_factory=list)
    signed: bool = True

    def content(self) -> dict[str, Any]:
        """Return what is signed; folders of earlier releases have no options."""
        content = {"overrides": self.overrides, "stages": self.stages, "unfinished": self.unfinished}
        return {**content, "options": self.options} if self.options else content

    def text(self) -> str:
        """Return the text of the file."""
        content = self.content()
        return json.dumps({**content, "signature": sign(content)}, indent=2, ensure_ascii=False) + "\n"


def _memory(overrides: Sequence[str], options: Sequence[str], paths: Collection[str]) -> _Memory:
    """Return the memory of a command that begins."""
    stages = next((o for o in overrides if key_of(o) == "stages" and not _only_plans(o)), None)
    kept = [absolute(o, paths) for o in overrides if key_of(o) not in ("run_dir", "stages", "plan.stages")]
    return _Memory(kept, stages, unfinished=stages, options=[*options])


def _only_plans(override: str) -> bool:
    """Whether an override asks for stage ``plan`` alone."""
    return key_of(override) == "stages" and parsed(override).value() == ["plan"]


def _remembered(folder: Path) -> _Memory:
    """Read the memory of a folder; a new folder has none.

    Raises:
        FileError: it is damaged, or missing although there are results or jobs of a multirun.
    """
    if not (folder / FILE).exists() and (folder / _MULTIRUN).exists():
        raise FileError(
            f"run_dir={folder} is the folder of a multirun; expected that of one of its jobs, or a new one"
        )
    if not (folder / FILE).exists() and (found := _results(folder)):
        raise FileError(
            f"run_dir={folder} holds {found[0]} of an unknown job, as {FILE} is missing; expected the folder "
            "of a run, or a new one"
        )
    return _read(folder / FILE)


def _results(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for pattern in _RESULTS for path in sorted(folder.glob(pattern))]


def _state(folder: Path) -> dict[str, int]:
    """Return the results of a folder and of those below it, and when each was written, in ns."""
    found = [folder / name for name in _results(folder) if not name.endswith(_CACHES)]
    inner = [path for place in found if place.is_dir() for path in place.glob("**/*") if path.is_file()]
    return {str(path): path.stat().st_mtime_ns for path in (*found, *inner) if path.is_file()}


def _read(path: Path) -> _Memory:
    """Read a memory.

    Raises:
        FileError: it is damaged, or holds what is no override.
    """
    if not path.exists():
        return _Memory()
    remedy = "remove it and give the run's overrides again"
    data = read_json(path, _SHAPE, remedy)
    options = data.get("options", [])
    memory = _Memory(data["overrides"], data.get("stages"), data.get("unfinished"), options)
    stages = [text for text in (memory.stages, memory.unfinished) if text is not None]
    odd = [o for o in memory.overrides if not is_override(o) or key_of(o) in ("run_dir", "stages")]
    odd += [text for text in stages if not is_choice_of_stages(text)]
    odd += [text for text in options if not is_config_option(text)]
    if odd:
        raise FileError(f"{path} is damaged: {odd[0][:80]!r} is no override that a run remembers; {remedy}")
    signed = is_signed(memory.content(), data.get("signature"))
    if memory.stages is not None and _only_plans(memory.stages):  # of an earlier release
        memory = replace(memory, stages=None)
    return replace(memory, signed=signed)
