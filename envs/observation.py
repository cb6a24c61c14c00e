"""The state that the agent sees: AMC's eleven features of a layer (section 3.1), each in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from amc.graph.groups import Graph

FEATURES = ("t", "n", "c", "h", "w", "stride", "k", "macs", "reduced", "rest", "previous")
"""Index, output and input channels, input height and width, stride, kernel size, MACs of the leading layer,
MACs reduced so far, MACs of the layers after it, and the preserve ratio executed for the group before."""


@dataclass(frozen=True)
class GroupFeatures:
    """Features of a group's leading layer that do not change during an episode, in raw units.

    Attributes:
        t: index of the group.
        n, c: output and input channels.
        h, w: input height and width.
        stride, k: of the convolution (its height).
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
    """Describe the leading layer of every group."""
    return layer_features(graph, [group.leading for group in graph.groups])


def layer_features(graph: Graph, names: Sequence[str]) -> tuple[GroupFeatures, ...]:
    """Describe layers that are decided one after the other."""
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
    """Observations from a scaled table: constant features are looked up, two are filled in.

    Every column but ``rest`` is scaled to [0, 1] by its smallest and largest value over the groups, as in the
    official code (a column that does not vary is 0); ``rest`` and ``reduced`` are shares of the dense MACs.
    """

    def __init__(self, groups: Sequence[GroupFeatures], dense_macs: float) -> None:
        raw = np.array([astuple(group) for group in groups], dtype=np.float64)
        low, high = raw.min(axis=0), raw.max(axis=0)
        span = np.where(high > low, high - low, 1.0)
        scaled = (raw - low) / span
        self._static = scaled[:, :8]
        self._rest = raw[:, 8] / dense_macs

    def __call__(self, group: int, macs_ratio: float, previous: float) -> np.ndarray:
        """Return the observation (11,) float32 before group ``group`` is decided.

        Args:
            macs_ratio: MACs with the decided groups at their widths and the rest dense, relative to dense.
            previous: preserve ratio executed for the group before; 1 for the first.
        """
        varying = (1.0 - macs_ratio, self._rest[group], previous)
        return np.clip(np.concatenate([self._static[group], varying]), 0.0, 1.0).astype(np.float32)
