"""The settings of agents and budgets, and the default options, from the files in ``conf``: without Hydra."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files
from numbers import Integral, Real
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from amc.errors import SettingError, did_you_mean, first_line
from experiments.config.sections.agents import AGENT_SECTIONS, AgentConfig

_NONE = "null"
"""What chooses no option of a group."""


def budget_preset(name: str) -> Mapping[str, Any]:
    """Return what ``budget=NAME`` sets on the command line: a file in ``conf/budget``, without its suffix."""
    found: Mapping[str, Any] = yaml.safe_load((files("conf") / "budget" / f"{name}.yaml").read_text())
    return found


def default_options(experiment: str | None) -> dict[str, str]:
    """Return the option of every group that a command does not choose, ``null`` for none.

    Args:
        experiment: name of a file in ``conf/experiment``; None or ``null`` for none. Of a file elsewhere
            nothing is known: then there are no options.
    """
    chosen: dict[str, str] = {}
    if experiment is not None and experiment != _NONE:
        if experiment not in _names("experiment"):
            return {}
        chosen = dict(_options_of(experiment))
    entries = yaml.safe_load((files("conf") / "config.yaml").read_text())["defaults"]
    groups = [entry for entry in entries if isinstance(entry, dict)]
    found = {group: option or _NONE for entry in groups for group, option in entry.items()}
    return found | chosen


def _options_of(experiment: str) -> Iterator[tuple[str, str]]:
    """Yield the groups and options that an experiment chooses, after those of the one it starts from."""
    content = yaml.safe_load((files("conf") / "experiment" / f"{experiment}.yaml").read_text())
    for entry in content.get("defaults", ()):
        if isinstance(entry, dict):
            for group, option in entry.items():
                yield group.removeprefix("override ").removeprefix("/"), option or _NONE
        elif entry != "_self_":
            yield from _options_of(entry)


def _names(group: str) -> list[str]:
    """Return the options of a group: its files in ``conf``, without their suffix."""
    found = [path.name for path in (files("conf") / group).iterdir()]
    return sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml"))


def agent_preset(name: str, /, **settings: Any) -> AgentConfig:
    """Return the configuration that ``agent=NAME`` selects on the command line.

    Args:
        name: name of a file in ``conf/agent``, without its suffix.
        settings: values that replace those of the file, such as ``episodes=50``; ``name``
            may be the dotted path of the user's own agent.

    Raises:
        SettingError: the agent or a setting is unknown, or a value has the wrong type.
    """
    names = _names("agent")
    if name not in names:
        raise SettingError(
            f"unknown agent {name!r}; expected one of {', '.join(names)}{did_you_mean(name, names)}"
        )
    values = yaml.safe_load((files("conf") / "agent" / f"{name}.yaml").read_text())
    base = next(entry for entry in values.pop("defaults") if entry != "_self_")
    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(AGENT_SECTIONS[base.removeprefix("base_")]),
            values,
            {key: _plain(value) for key, value in settings.items()},
        )
    except OmegaConfBaseException as error:
        told, key = first_line(error), error.full_key  # further lines are for OmegaConf's own developers
        where = f"{key} is refused: " if key in settings and repr(key) not in told else ""
        raise SettingError(f"agent={name}: {where}{told}") from error
    found = OmegaConf.to_object(merged)
    assert isinstance(found, AgentConfig)
    return found


def _plain(value: Any) -> Any:
    """Return a number as one of Python's: OmegaConf takes none of NumPy's."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)
