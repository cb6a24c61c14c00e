"""The settings of agents and budgets from their files in ``conf``, read without Hydra."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from numbers import Integral, Real
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from amc.errors import SettingError, did_you_mean, first_line
from experiments.config.sections.agents import AGENT_SECTIONS, AgentConfig


def budget_preset(name: str) -> Mapping[str, Any]:
    """Return what ``budget=NAME`` sets on the command line: a file in ``conf/budget``, without its suffix."""
    found: Mapping[str, Any] = yaml.safe_load((files("conf") / "budget" / f"{name}.yaml").read_text())
    return found


def agent_preset(name: str, **settings: Any) -> AgentConfig:
    """Return the configuration that ``agent=NAME`` selects on the command line.

    Args:
        name: name of a file in ``conf/agent``, without its suffix.
        settings: values that replace those of the file, such as ``episodes=50``.

    Raises:
        SettingError: the agent or a setting is unknown, or a value has the wrong type.
    """
    folder = files("conf") / "agent"
    names = sorted(
        path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml")
    )
    if name not in names:
        raise SettingError(
            f"unknown agent {name!r}; expected one of {', '.join(names)}{did_you_mean(name, names)}"
        )
    values = yaml.safe_load((folder / f"{name}.yaml").read_text())
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
