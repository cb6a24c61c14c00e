"""Single overrides ``KEY=VALUE``, read and written by Hydra's rules of quoting."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from amc.errors import SettingError

_NEW = "++"
"""Hydra's prefix for a value of a key that may be new."""
_AROUND_SIGNS = re.compile(r"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|\s*([\[\]{},:])\s*""")
"""A quoted text, or a sign of a list or a dictionary with the spaces around it."""
MULTIRUN = frozenset({"-m", "--multirun"})
"""Hydra's options for many jobs."""
_WITH_VALUE = frozenset(
    {
        *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir"),
        *("-cd", "--experimental-rerun", "--info", "-i"),
    }
)
"""Hydra's options that are followed by a value."""
_INFO = frozenset({"--info", "-i"})
"""Of these, those that may stand alone."""
_SHOWING = frozenset({"--cfg", "-c", *_INFO})
"""Of these, those that show something of one job in place of running it."""


def key_of(override: str) -> str:
    """Return the key of an override, without Hydra's prefixes ``+`` and ``~``."""
    return override.split("=", 1)[0].lstrip("+~")


@cache
def parsed(override: str) -> Override:
    """Return an override as Hydra reads it.

    Raises:
        HydraException: it is malformed.
    """
    return _parser().parse_override(override)


def text_of(override: str) -> str | None:
    """Return the value of an override as Hydra reads it, quotes removed; None if it is no text or number.

    Values that the configuration has to complete, such as ``runs/${name}``, are none either.
    """
    try:
        read = parsed(override)
    except HydraException:
        return None
    value = read.value()
    if read.is_sweep_override() or isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = str(value)
    return None if not text or "${" in text else text


def readable(arguments: Sequence[str], paths: Collection[str]) -> list[str]:
    """Quote the values of keys that name files, where Hydra could not read them; expand ``~``.

    Hydra accepts umlauts, parentheses and more only between quotes, which the shell removes. In a multirun, a
    value with a comma or a quote of its own may mean anything, and is left to Hydra.

    Args:
        arguments: of the command line.
        paths: keys whose values name files.
    """
    many = not MULTIRUN.isdisjoint(arguments)
    return [_readable(each, many) if "=" in each and key_of(each) in paths else each for each in arguments]


def options_first(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with Hydra's options before the settings: argparse refuses them between these.

    Raises:
        SettingError: many jobs are to be shown.
    """
    options, settings, waiting = [], [], list(arguments)
    while waiting:
        each = waiting.pop(0)
        if not each.startswith("-"):
            settings.append(each)
        elif each in _INFO and not (waiting and _is_value(waiting[0])):
            options += [each, "all"]  # its default; argparse would take the first setting for its value
        elif each in _WITH_VALUE and waiting:
            options += [each, waiting.pop(0)]
        else:
            options.append(each)
    shown = [each for each in options if each.partition("=")[0] in _SHOWING]
    if shown and not MULTIRUN.isdisjoint(options):
        raise SettingError(f"{shown[0]} shows one job, but -m is given: leave one of them out")
    return [*options, *settings]


def _is_value(argument: str) -> bool:
    """Whether an argument is neither an option nor a setting."""
    return "=" not in argument and not argument.startswith(("-", "~"))


def with_new_keys(arguments: Sequence[str], free: Collection[str]) -> list[str]:
    """Return the arguments with Hydra's prefix ``++`` before keys below which any key is allowed.

    Without it Hydra refuses a key that the configuration does not have yet.

    Args:
        arguments: of the command line.
        free: keys such as ``model.kwargs``.
    """
    return [f"{_NEW}{each}" if _is_free(each, free) else each for each in arguments]


def without_prefixes(arguments: Sequence[str], free: Collection[str]) -> list[str]:
    """Return the arguments as a user may type them: without what `with_new_keys` adds."""
    return [
        each.removeprefix(_NEW) if _is_free(each.removeprefix(_NEW), free) else each for each in arguments
    ]


def _is_free(argument: str, free: Collection[str]) -> bool:
    key, equals, _ = argument.partition("=")
    return bool(equals) and any(key == each or key.startswith(f"{each}.") for each in free)


def compact(override: str) -> str:
    """Return an override without the spaces that mean nothing in its list or dictionary."""
    if "=" not in override or not any(map(str.isspace, override)) or not _is_read(override):
        return override
    if _is_sweep(override) or not _is_nested(override):
        return override
    key, _, value = override.partition("=")
    return f"{key}={_AROUND_SIGNS.sub(lambda found: found[1] or found[2], value.strip())}"


def absolute(override: str, paths: Collection[str]) -> str:
    """Return an override with an absolute path for its value, if its key is one of ``paths``."""
    text = text_of(override) if key_of(override) in paths else None
    return override if text is None else _with_text(override, str(Path(text).expanduser().resolve()))


def _readable(argument: str, many: bool) -> str:
    raw = argument.partition("=")[2]
    means_more = _is_read(argument) and (many or not (_is_sweep(argument) or _is_nested(argument)))
    text = text_of(argument) if means_more or (many and set(raw) & set(",'\"")) else raw
    if text is None or (text == text_of(argument) and not text.startswith("~")):
        return argument
    return _with_text(argument, str(Path(text).expanduser()) if text.startswith("~") else text)


def _is_read(override: str) -> bool:
    try:
        parsed(override)
    except HydraException:
        return False
    return True


def _is_sweep(override: str) -> bool:
    return parsed(override).is_sweep_override()


def _is_nested(override: str) -> bool:
    """Whether the value is read as a list or a dictionary."""
    return isinstance(parsed(override).value(), list | dict)


def _with_text(override: str, text: str) -> str:
    """Return an override with the value ``text``, quoted where Hydra would read it as anything else."""
    key = override.partition("=")[0]
    plain = f"{key}={text}"
    return plain if text_of(plain) == text else f"{key}={QuotedString(text, Quote.single).with_quotes()}"


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()
