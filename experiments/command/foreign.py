"""Settings that a run folder of unknown origin remembers: they must be plain data of the schema.

Whoever made the folder must not decide which code is imported, which files of this machine are read, or which
hosts are reached. Such a setting counts only if the person at the keyboard gives it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import OverrideType, QuotedString
from hydra.errors import HydraException

from experiments.command.overrides import is_config_option, parsed

_KEY = r"[\w/.@:$][\w/.@:$-]*"
_OVERRIDE = re.compile(rf"(\+{{0,2}}{_KEY}=|~{_KEY}(=|$))")
_NAME = re.compile(r"[\w-]+")
_MODEL = re.compile(r"timm:[\w.-]+|(torchvision:)?[\w-]+")


@dataclass(frozen=True)
class Rules:
    """What the schema says about its keys.

    Attributes:
        keys: all keys that hold values, such as ``agent.episodes``.
        groups: keys that choose a file of the configuration, such as ``agent``.
        paths: keys whose values name files anywhere.
        inner_paths: keys whose values name folders below another one.
        code: keys whose values may be dotted paths.
        personal: keys, and beginnings of keys ending in a dot, that name hosts, devices or accounts.
        free: keys below which any key is a value, such as ``model.kwargs``.
        options: returns the option of every group that is not chosen, under one of ``experiment`` or None.
    """

    keys: Collection[str] = ()
    groups: Collection[str] = ()
    paths: Collection[str] = ()
    inner_paths: Collection[str] = ()
    code: Collection[str] = ()
    personal: Collection[str] = ()
    free: tuple[str, ...] = ("model.kwargs", "data.kwargs")
    options: Callable[[str | None], Mapping[str, str]] = lambda experiment: {}


def names_code(name: str) -> bool:
    """Whether the name of a network or a reward may be the path of code; a tagged timm name looks alike."""
    return _MODEL.fullmatch(name) is None


def is_override(text: str) -> bool:
    """Whether a remembered item is an override and not an option of the command."""
    return _OVERRIDE.match(text) is not None


def is_choice_of_stages(text: str) -> bool:
    """Whether a remembered item is a list of stages."""
    try:
        override = parsed(text)
    except HydraException:
        return False
    names = override.value()
    return (
        override.key_or_group == "stages"
        and isinstance(names, list)
        and all(map(_NAME.fullmatch, _words(names)))
    )


def objection(text: str, folder: Path, rules: Rules) -> str | None:
    """Return what a remembered override could do that only the user may decide, or None if it is plain data.

    Args:
        text: the override, or an option that says which configuration is read.
        folder: the run folder; files in it may be named.
        rules: the schema.
    """
    if is_config_option(text):
        return "says which configuration is read"
    try:
        override = parsed(text)
    except HydraException:
        return "cannot be read"
    key = override.key_or_group
    if override.type is OverrideType.DEL or override.package is not None or override.is_sweep_override():
        return "changes how the configuration is put together"
    free = any(key == each or key.startswith(f"{each}.") for each in rules.free)
    if not (free or key in rules.keys or key in rules.groups):
        return "is no setting of a job"
    value = override.value()
    if key in rules.groups and not isinstance(value, str | None):
        return "changes how the configuration is put together"
    words = list(_words(value))
    if any("${" in word for word in words):
        return "reads other values, such as environment variables"
    if any(word.startswith("_") for word in (*_keys(value), *key.split("."))):
        return "names code"
    return _meaning(key, words, folder, rules)


def code_objection(text: str, rules: Rules) -> str | None:
    """Return the objection to an override that names code, or None."""
    try:
        override = parsed(text)
    except HydraException:
        return None
    return _code(override.key_or_group, list(_words(override.value())), rules)


def _meaning(key: str, words: list[str], folder: Path, rules: Rules) -> str | None:
    if (code := _code(key, words, rules)) is not None:
        return code
    if key in rules.groups and not (key in rules.code or all(map(_NAME.fullmatch, words))):
        return "names a file of the configuration"
    own = any(key == each or (each.endswith(".") and key.startswith(each)) for each in rules.personal)
    if own and words and words != ["none"]:
        return "names a host, a device or an account"
    if key in rules.paths and not all(_is_inside(word, folder) for word in words):
        return "names files outside of the folder"
    if key in rules.inner_paths and any(Path(w).is_absolute() or ".." in Path(w).parts for w in words):
        return "names files outside of its data"
    return None


def _code(key: str, words: list[str], rules: Rules) -> str | None:
    return "names code" if key in rules.code and any(map(names_code, words)) else None


def _is_inside(word: str, folder: Path) -> bool:
    return Path(word).expanduser().resolve().is_relative_to(folder.resolve())


def _words(value: Any) -> Iterator[str]:
    """Yield all texts in a value."""
    if isinstance(value, QuotedString):
        yield value.text
    elif isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _words(each)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _words(each)


def _keys(value: Any) -> Iterator[str]:
    """Yield all keys in a value."""
    if isinstance(value, Mapping):
        yield from map(str, value)
    if isinstance(value, list | Mapping):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _keys(each)
