"""Sections of the agents: ``conf/agent/NAME.yaml`` declares one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from agents import EvolutionSettings, NetAdaptSettings, ThompsonSettings, TPESettings
from agents.offpolicy.settings import DDPGSettings
from experiments.config.derive import path, section


@dataclass
class AgentConfig:
    """An agent; ``episodes`` includes the warm-up. Baselines ignore ``warmup_episodes``.

    ``guide`` is the initial allocation: ``none``, ``uniform``, ``greedy`` (``amc.budget.allocation``) or
    ``best``, which evaluates these two and ``global_l1`` and takes the one with the highest return.
    ``acts`` says what an action is: ``ratios`` (preserve ratios, AMC), ``weights`` of error curves, or
    ``auto``, which is ``weights`` where error curves, an enforced budget, ``budget.fit=scale`` and the
    ``guide`` allow it. ``pretrained`` is the file of an actor that ``experiments.pretrain`` trained on
    searches of other networks; ``ddpg`` and ``thompson`` with ``weights`` start from what it expects.

    Every new best network is also scored on ``data.unseen`` images if ``patience`` or ``select`` ask for it:
    the search ends after ``patience`` episodes within the budget without a better score there (0: never), and
    ``select`` says whether the winner has the best return (``search``) or the best score there
    (``held_out``). See ``experiments.run.held_out``.
    """

    name: str = MISSING
    episodes: int = 150
    warmup_episodes: int = 50
    guide: str = "none"
    acts: str = "ratios"
    pretrained: str | None = path()
    patience: int = 0
    select: str = "search"


def _agent(name: str, settings: type[Any]) -> type[AgentConfig]:
    """Derive the section of one agent from its settings; ``guide`` is a name here, ``factors`` a file."""
    return section(
        f"{settings.__name__.removesuffix('Settings')}Config",
        settings,
        f"See ``{settings.__module__}.{settings.__name__}``.",
        {"name": (str, name)},
        without={"guide", "factors"},
        bases=(AgentConfig,),
    )


AGENT_SECTIONS: Mapping[str, type[AgentConfig]] = {
    "agent": AgentConfig,
    "ddpg": _agent("ddpg", DDPGSettings),
    "evolution": _agent("evolution", EvolutionSettings),
    "netadapt": _agent("netadapt", NetAdaptSettings),
    "thompson": _agent("thompson", ThompsonSettings),
    "tpe": _agent("tpe", TPESettings),
}
"""``base_NAME`` in the files of ``conf/agent`` -> the section that it declares."""
