"""Remarks on settings that the user has changed and that the chosen search does not use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from agents import DDPGSettings
from experiments.config.presets import agent_preset
from experiments.config.sections.agents import AgentConfig

_NOISE = ("sigma", "sigma_decay", "explore_share", "follow_best")
_BELIEF = ("imagined_sigma", "prior", "noise")
_PRESETS = ("ddpg", "ddpg_paper")


def unused_by_ddpg(settings: DDPGSettings, *, weighs: bool) -> list[str]:
    """Return remarks on settings of DDPG without effect.

    A setting is taken for one that the user has changed if it is not that of the file of ``conf/agent`` that
    all settings together are most like.

    Args:
        settings: of the search.
        weighs: whether actions are weights of error curves, about which a belief is possible.
    """
    usual, remarks = _most_like(settings), []
    for names, why in _without_effect(settings, weighs):
        changed = [name for name in names if getattr(settings, name) != getattr(usual, name)]
        if changed:
            told = ", ".join(f"agent.{name}={getattr(settings, name)}" for name in changed)
            remarks.append(f"{told}: no effect, as {why}")
    return remarks


def unused_warm_up(config: AgentConfig) -> str | None:
    """Return a remark on a changed warm-up of an agent that has none, or None."""
    if config.warmup_episodes == AgentConfig.warmup_episodes:
        return None
    return f"agent.warmup_episodes={config.warmup_episodes}: no effect, as agent={config.name} has no warm-up"


def _without_effect(settings: DDPGSettings, weighs: bool) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield names of settings that are not used, and why."""
    if weighs and settings.imagined > 0:
        drawn = "episodes explore by draws from the belief about error curves"
        yield _NOISE, f"{drawn}; agent.imagined=0 explores with noise"
    else:
        names = ("imagined", *_BELIEF) if settings.imagined > 0 else _BELIEF
        yield names, "no episode is imagined where actions are ratios or agent.imagined is 0"
        if not settings.guide:
            yield ("follow_best",), "there is no guide to move; agent.guide gives one"
    if settings.gamma == 0:
        yield ("tau",), "agent.gamma=0 asks no target network what later steps bring"
    if settings.standardise:
        yield ("baseline_alpha",), "agent.standardise=true subtracts the mean of all stored returns instead"


def _most_like(settings: DDPGSettings) -> AgentConfig:
    """Return the file of ``conf/agent`` that has most of the settings."""
    names = [field.name for field in fields(settings) if field.name not in ("guide", "factors", "hidden")]

    def shared(preset: AgentConfig) -> int:
        return sum(getattr(preset, name) == getattr(settings, name) for name in names)

    return max((agent_preset(name) for name in _PRESETS), key=shared)
