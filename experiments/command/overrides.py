"""Overrides ``KEY=VALUE`` and Hydra's options, read and written by Hydra's rules of quoting."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

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
_SHORT = {"-cn": "--config-name", "-cd": "--config-dir", "-cp": "--config-path"}
"""Of these, those that say which configuration is read -> their long forms."""
_OWN_NAME, _OWN_PLACE = "config", "pkg://conf"
"""Which configuration is read without them."""
_OUTSIDE = re.compile(r"\$\{(?:oc\.env|now):[^${}]*\}")
"""What reads the environment or the clock, and not the configuration."""


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


def typed(hydra: HydraConf) -> list[str]:
    """Return the overrides of a job as they were typed: iterating over Hydra's list fills in ``${...}``."""
    found: Any = OmegaConf.to_container(cast(ListConfig, hydra.overrides.task), resolve=False)
    return [str(each) for each in found]


def of_job(hydra: HydraConf, config: DictConfig) -> list[str]:
    """Return the overrides of a job as its folder remembers them, and ``run_dir`` as it was typed.

    The environment and the time may be others when the job goes on: what a value reads of these, and of
    nothing else, is filled in. A value that reads the configuration goes on reading it, but the stages are
    those that were run.

    Args:
        hydra: Hydra's own configuration of the job.
        config: that of the job.

    Raises:
        OmegaConfBaseException: a variable of the environment or a key of the configuration does not exist.
    """
    return [_filled(each, place, hydra, config) for place, each in enumerate(typed(hydra))]


def _filled(override: str, place: int, hydra: HydraConf, config: DictConfig) -> str:
    key, _, given = override.partition("=")
    if "${" not in override or key_of(override) == "run_dir" or _is_sweep(override):
        return override
    if key_of(override) == "stages":
        return f"{key}=[{','.join(config.stages)}]"
    value = parsed(override).value()
    if not isinstance(value, str) or "${" in _OUTSIDE.sub("", value):
        return override
    if given not in (value, *(f"{quote}{value}{quote}" for quote in "'\"")):  # it has signs that are escaped
        return override
    read = hydra.overrides.task[place].partition("=")[2]
    text = read if given == value else read[1:-1]
    if "${" in text or text == str(None):  # which ``${oc.env:NAME,null}`` reads
        return override
    return f"{key}={QuotedString(text, Quote.single).with_quotes()}"


def config_options(hydra: HydraConf) -> list[str]:
    """Return Hydra's options that say which configuration a job has, folders absolutely; none by default.

    Args:
        hydra: Hydra's own configuration of the job.
    """
    name = hydra.job.config_name
    found = [] if not name or name == _OWN_NAME else [f"--config-name={name}"]
    for source in hydra.runtime.config_sources:
        place = f"pkg://{source.path}" if source.schema == "pkg" else str(Path(source.path).absolute())
        if source.provider == "command-line":
            found.append(f"--config-dir={place}")
        elif source.provider == "main" and place != _OWN_PLACE:
            found.append(f"--config-path={place}")
    return found


def is_config_option(text: str) -> bool:
    """Whether a text is one of ``config_options``."""
    name, equals, value = text.partition("=")
    return name in _SHORT.values() and bool(equals and value)


def option_name(argument: str) -> str:
    """Return the name of an option of Hydra, in its long form if it says which configuration is read."""
    name = argument.partition("=")[0]
    return _SHORT.get(name, name)


def readable(arguments: Sequence[str], paths: Collection[str]) -> list[str]:
    """Quote the values of keys that name files, where Hydra would not read them as typed; expand ``~``.

    Hydra accepts umlauts, parentheses and more only between quotes, which the shell removes, and would make
    20240501 of ``2024_05_01``. In a multirun, a value with a comma or a quote of its own may mean anything,
    and is left to Hydra.

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
    if _is_number(argument):
        return _with_text(argument, raw.strip())
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


def _is_number(override: str) -> bool:
    """Whether the value is read as a number or as true or false."""
    return _is_read(override) and isinstance(parsed(override).value(), int | float)


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
