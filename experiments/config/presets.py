"""The settings of agents and budgets from their files in ``conf``, read without Hydra."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from amc.errors import SettingError, did_you_mean
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
            OmegaConf.structured(AGENT_SECTIONS[base.removeprefix("base_")]), values, settings
        )
    except OmegaConfBaseException as error:
        raise SettingError(f"agent={name}: {' '.join(str(error).split())}") from error
    found = OmegaConf.to_object(merged)
    assert isinstance(found, AgentConfig)
    return found
