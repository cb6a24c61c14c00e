"""The observation: AMC's eleven features of a layer (section 3.1), each in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import numpy as np

from amc.budget.budget import Budget
from amc.budget.weighing import WeightedAllocation, with_one_changed
from amc.budget.widths import WidthSpace

if TYPE_CHECKING:
    from amc.graph.groups import Graph

FEATURES = ("t", "n", "c", "h", "w", "stride", "k", "macs", "reduced", "rest", "previous")
"""Names of the features, in order; the table in ``ChannelPruningEnv`` explains them."""

CURVE_FEATURES = (*FEATURES[:8], "rest", "greedy", "error", "saving")
"""Names of the features of ``ChannelWeightingEnv``, in order."""


@dataclass(frozen=True)
class GroupFeatures:
    """Features of a group's leading layer that are constant in an episode, before scaling.

    Attributes:
        t: index of the group.
        n, c: output and input channels.
        h, w: input height and width, in pixels.
        stride, k: vertical stride and kernel height, in pixels.
        macs: multiply-adds of the layer in the dense network.
        rest: multiply-adds of all layers after it in the dense network.
    """

    t: int
    n: int
    c: int
    h: int
    w: int
    stride: int
    k: int
    macs: int
    rest: int


def group_features(graph: Graph) -> tuple[GroupFeatures, ...]:
    """Return the features of every group, in forward order."""
    return layer_features(graph, [group.leading for group in graph.groups])


def layer_features(graph: Graph, names: Sequence[str]) -> tuple[GroupFeatures, ...]:
    """Return the features of layers, each decided on its own, in the order of ``names``."""
    place = {layer.name: i for i, layer in enumerate(graph.layers)}
    features = []
    for t, name in enumerate(names):
        layer = graph.layer(name)
        rest = sum(later.macs for later in graph.layers[place[layer.name] + 1 :])
        features.append(
            GroupFeatures(
                t=t,
                n=layer.out_channels,
                c=layer.in_channels,
                h=layer.in_size[0],
                w=layer.in_size[1],
                stride=layer.stride[0],
                k=layer.kernel_size[0],
                macs=layer.macs,
                rest=rest,
            )
        )
    return tuple(features)


class ObservationTable:
    """A table of the constant features; ``reduced`` and ``previous`` are filled in at each step.

    Every constant feature but ``rest`` is scaled to [0, 1] by its smallest and largest value over the groups,
    as in the official code; one that does not vary is 0. ``rest`` and ``reduced`` are shares of the dense
    multiply-adds.

    Args:
        groups: the constant features of every group.
        dense_macs: multiply-adds of the dense network that ``groups`` describe.
    """

    def __init__(self, groups: Sequence[GroupFeatures], dense_macs: float) -> None:
        self._static, rest = _scaled(groups)
        self._rest = rest / dense_macs

    def __call__(self, group: int, macs_ratio: float, previous: float) -> np.ndarray:
        """Return the observation (11,) float32 before group ``group`` is decided.

        Args:
            group: index of the group.
            macs_ratio: multiply-adds with the later groups dense, relative to the dense network.
            previous: executed preserve ratio of the previous group; 1 for the first.
        """
        varying = (1.0 - macs_ratio, self._rest[group], previous)
        return np.clip(np.concatenate([self._static[group], varying]), 0.0, 1.0).astype(np.float32)


def curve_observations(
    groups: Sequence[GroupFeatures],
    dense_macs: float,
    space: WidthSpace,
    budget: Budget,
    allocate: WeightedAllocation,
) -> np.ndarray:
    """Return the observations (G, 12) float32 of ``ChannelWeightingEnv``, one for each group.

    Args:
        groups: the constant features of every group.
        dense_macs: multiply-adds of the dense network that ``groups`` describe.
        space: the widths that groups may take.
        budget: the limit.
        allocate: finds widths for weights of the error curves.
    """
    static, rest = _scaled(groups)
    greedy = allocate([1.0] * len(groups))
    errors = allocate.errors_at(greedy)
    dense, least, cost = np.array(space.dense), np.array(space.minimum), budget.leading.cost
    varying = (
        rest / dense_macs,
        np.array(greedy) / dense,
        errors / max(float(errors.sum()), 1e-12),
        1.0 - with_one_changed(cost, dense[None], (least - dense)[None])[0] / cost(space.dense),
    )
    return np.clip(np.concatenate([static, np.stack(varying, 1)], 1), 0.0, 1.0).astype(np.float32)


def _scaled(groups: Sequence[GroupFeatures]) -> tuple[np.ndarray, np.ndarray]:
    """Return the first eight features (G, 8), scaled by their extremes, and ``rest`` (G,)."""
    raw = np.array([astuple(group) for group in groups], dtype=np.float64)
    low, high = raw.min(axis=0), raw.max(axis=0)
    scaled = (raw - low) / np.where(high > low, high - low, 1.0)
    return scaled[:, :8], raw[:, 8]
