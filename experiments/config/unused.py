"""A remark on settings that the user has changed and that the chosen search does not use."""

from __future__ import annotations

from agents import DDPGSettings
from experiments.config.presets import agent_preset

_NOISE = ("sigma", "sigma_decay", "explore_share", "follow_best")
_BELIEF = ("imagined", "imagined_sigma", "prior", "noise")
_PRESETS = ("ddpg", "ddpg_paper")


def unused_by_ddpg(settings: DDPGSettings, *, weighs: bool) -> str | None:
    """Return a remark on settings of DDPG without effect, or None.

    A setting is taken for one that the user has changed if no file of ``conf/agent`` has its value.

    Args:
        settings: of the search.
        weighs: whether actions are weights of error curves, about which a belief is possible.
    """
    imagines = weighs and settings.imagined > 0
    usual = [agent_preset(name) for name in _PRESETS]
    changed = [
        f"agent.{name}={getattr(settings, name)}"
        for name in (_NOISE if imagines else _BELIEF)
        if getattr(settings, name) not in {getattr(preset, name) for preset in usual}
    ]
    if not changed:
        return None
    why = (
        "episodes explore by draws from the belief about error curves; agent.imagined=0 explores with noise"
        if imagines
        else "no episode is imagined where actions are ratios or agent.imagined is 0"
    )
    return f"{', '.join(changed)}: no effect, as {why}"
