"""What can be chosen: ``amc list KIND [PATTERN]`` and ``amc help GROUP``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from importlib.resources import files

from amc.errors import SettingError, did_you_mean
from experiments.config.stages import STAGES
from experiments.words.options import Key, keys

_FOR_WANDB = "sweep"
"""Folder of ``conf`` that is no group: its files are sweeps of wandb."""


def print_list(arguments: Sequence[str]) -> None:
    """Print the names of a kind that match a pattern; a pattern without ``*`` matches any part of a name.

    Raises:
        SettingError: the kind is unknown or not given, or words follow the pattern.
    """
    if len(arguments) > 2:
        raise SettingError(f"amc list {' '.join(arguments)}: expected a kind and one pattern")
    kind, pattern = (*arguments, "", "")[:2]
    if kind not in KINDS:
        near = did_you_mean(kind, KINDS)
        raise SettingError(f"amc list {kind or 'what?'}: expected one of {', '.join(KINDS)}{near}")
    found = matching(KINDS[kind](), pattern)
    print("\n".join(found) if found else f"none of the {kind} matches {pattern!r}")


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """Return the names that match ``pattern``, in their order."""
    wild = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    return [name for name in names if fnmatchcase(name, wild)]


def print_group(name: str) -> None:
    """Print the options of a configuration group with what each is, and the keys of its section.

    Raises:
        SettingError: there is no such group or section.
    """
    groups, sections = _groups(), {key.section for key in keys()} - {""}
    known = sorted({*groups, *sections})
    if name not in known:
        raise SettingError(
            f"no group {name!r}; expected one of {', '.join(known)}{did_you_mean(name, known)}"
        )
    for option in groups.get(name, ()):
        print(f"{name}={option:<18} {about(name, option)}")
    own = [key for key in keys() if key.section == name]
    if own:
        print(f"\nkeys of {name}, with their types and defaults")
    print("\n".join(map(_line, own)))


def about(group: str, option: str) -> str:
    """Return the first sentence of the comment at the top of an option's file."""
    lines = (files("conf") / group / f"{option}.yaml").read_text().splitlines()
    comment = [line[1:].strip() for line in lines if line.startswith("#") and "@package" not in line]
    return " ".join(comment).split(". ")[0].rstrip(".")


def _line(key: Key) -> str:
    return f"  {key.name:<36} {key.type:<14} {key.default}"


def _groups() -> dict[str, list[str]]:
    """Return the options of every configuration group by its name."""
    folders = [entry for entry in files("conf").iterdir() if entry.is_dir() and entry.name != _FOR_WANDB]
    found = {
        folder.name: sorted(
            e.name.removesuffix(".yaml") for e in folder.iterdir() if e.name.endswith(".yaml")
        )
        for folder in folders
    }
    return {name: options for name, options in sorted(found.items()) if options}


def _models() -> list[str]:
    from amc.models.names import known_names

    return known_names()


def _runtimes() -> list[str]:
    from amc.latency.registry import BACKENDS

    return [*BACKENDS]


def _rewards() -> list[str]:
    from envs.reward import REWARDS

    return [*REWARDS]


def _formats() -> list[str]:
    from amc.export import FORMATS

    return [*FORMATS]


KINDS: Mapping[str, Callable[[], Iterable[str]]] = {
    "models": _models,
    "agents": lambda: _groups()["agent"],
    "runtimes": _runtimes,
    "data": lambda: _groups()["data"],
    "rewards": _rewards,
    "stages": lambda: STAGES,
    "formats": _formats,
}
"""What ``amc list`` knows -> the names."""
