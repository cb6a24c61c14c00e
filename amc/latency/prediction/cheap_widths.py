"""Multiples of channels that are cheap: kernels work in blocks, and a part of a block costs a whole one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from amc.graph.groups import Graph
from amc.latency.prediction.layer_kinds import LayerKind
from amc.latency.remote.protocol import RemoteBackend
from amc.latency.timing.measure import time_models
from amc.runtimes.protocol import Backend
from amc.seeds import draws_kept

MULTIPLES = (1, 2, 4, 8, 16, 32)
WIDTHS = range(33, 65)
"""Output channels that are timed; the range starts after and ends at a multiple of the largest multiple."""
TOLERANCE = 0.03
"""Largest mean extra time at which rounding up is called free."""


@dataclass(frozen=True)
class WidthCosts:
    """Latency of one kind of layer by its output channels.

    Attributes:
        layer: name of the kind of layer.
        milliseconds: latency at every width of ``WIDTHS``.
        extra: mean extra time of rounding a width up, by multiple: 0.05 is 5 percent.
    """

    layer: str
    milliseconds: tuple[float, ...]
    extra: Mapping[int, float]

    @property
    def cheap_multiple(self) -> int:
        """The largest multiple to which rounding a width up is free."""
        return max(multiple for multiple, extra in self.extra.items() if extra <= TOLERANCE)


def extra_of_rounding(milliseconds: Mapping[int, float]) -> dict[int, float]:
    """Return the mean of t(width rounded up) / t(width) - 1, by multiple.

    Args:
        milliseconds: t, at every width of ``WIDTHS``.
    """
    return {
        multiple: fmean(
            milliseconds[-(-width // multiple) * multiple] / ms - 1 for width, ms in milliseconds.items()
        )
        for multiple in MULTIPLES
    }


@draws_kept()
def width_costs(
    kind: LayerKind, backend: Backend | RemoteBackend, *, batch: int, threads: int, rounds: int
) -> WidthCosts:
    """Time a layer of 64 input channels at every output width of ``WIDTHS``.

    Its weights are drawn; the global random states are left alone.

    Raises:
        AmcError: A layer does not convert, or the backend fails.
    """
    inputs = WIDTHS[-1]
    timings = time_models(
        {str(width): kind.network(inputs, width).eval() for width in WIDTHS},
        kind.input_shape(inputs),
        backend,
        batch=batch,
        threads=threads,
        rounds=rounds,
    )
    milliseconds = {width: timings[str(width)].median_ms for width in WIDTHS}
    return WidthCosts(str(kind), tuple(milliseconds.values()), extra_of_rounding(milliseconds))


def typical_layer(graph: Graph, kinds: Sequence[LayerKind]) -> LayerKind | None:
    """Return the kind of layer with the most multiply-adds among convolutions and linear layers.

    Depthwise and transposed ones do not count; it is None if there are no others.
    """
    share: dict[LayerKind, int] = {}
    for layer, kind in zip(graph.layers, kinds, strict=True):
        if kind.kind in ("conv", "linear"):
            share[kind] = share.get(kind, 0) + layer.macs
    return max(share, key=lambda kind: share[kind], default=None)
