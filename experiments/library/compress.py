"""Search and pruning in one call."""

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
        validation: held-out images that score candidates: a pair (images, labels), a data set or a loader.
            Of both, images that come class by class, or without labels, are put in a mixed order.
        agent: name of an agent in ``conf/agent``; its file gives the settings.
        episodes: number of candidates to score; by default the value in the agent's file.
        seed: seed of all random draws: the same seed gives the same strategy, but for limits on the latency,
            which is measured anew.
        on_episode: called after every episode.
        options: see ``CompressionTask``: ``macs_ratio``, ``params_ratio``, ``size_ratio``, ``latency_ratio``,
            ``score``, ``reward``, ``round_to``, ``min_preserve_ratio``, ``exclude``, ``progress`` and others.

    Raises:
        SettingError: a setting is unknown or impossible, or no allowed network meets the budget.
        NotPrunableError: the network cannot be cut exactly.
        UnavailableError: a latency budget needs a runtime that is not available.
    """
    task = CompressionTask(model, calibration, validation, seed=seed, **options)
    return task.search(agent, episodes=episodes, on_episode=on_episode)
