"""The search and the cut as one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from agents import Episode
from experiments.library.compressed import Compressed
from experiments.library.task import CompressionTask


def compress(
    model: nn.Module,
    calibration: Any,
    validation: Any,
    *,
    agent: str = "ddpg",
    episodes: int | None = None,
    seed: int = 0,
    on_episode: Callable[[Episode], None] | None = None,
    **options: Any,
) -> Compressed:
    """Search for the widths of a network under a budget, and return the pruned network.

    >>> result = amc.compress(model, loader, (images, labels), macs_ratio=0.5)  # doctest: +SKIP
    >>> result.model, result.strategy, result.report                            # doctest: +SKIP

    Args:
        model: the trained dense network; it is read and never changed.
        calibration: a few hundred normalised training images: a tensor (N, C, H, W), a data set or a loader.
        validation: held-out images that judge candidates: a pair (images, labels), a data set or a loader.
        agent: name of an agent of ``conf/agent``.
        episodes: networks that are judged; by default that of the agent's file.
        seed: of all random draws: the same seed gives the same strategy.
        on_episode: called after every episode.
        options: see ``CompressionTask``: ``macs_ratio``, ``params_ratio`` or ``latency_ratio``, ``score``,
            ``reward``, ``round_to``, ``min_preserve_ratio``, ``exclude``, ``progress`` and others.

    Raises:
        SettingError: an impossible setting, or a budget that no allowed network meets.
        NotPrunableError: the network cannot be cut exactly.
    """
    task = CompressionTask(model, calibration, validation, seed=seed, **options)
    return task.search(agent, episodes=episodes, seed=seed, on_episode=on_episode)
