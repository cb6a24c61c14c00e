"""Grids of integers for weights and activations: scales, zero points, and the ranges that they cover."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amc.errors import AmcError
from amc.quantization.operators import HIGH, LOW
from amc.quantization.settings import QuantizeSettings

_BINS = 2048
_COUNTED = 2**24
"""Values that are counted at once: a bin is a float32 number, which further ones no longer raise."""
_BIAS_STEPS = 2**30
_SHARES = torch.linspace(0.2, 1.0, 41, dtype=torch.float64)
"""Shares of the whole range that are tried for the least error."""


@dataclass(frozen=True)
class WeightGrid:
    """The grid of a layer's weights as a matrix (channels, inputs).

    Attributes:
        scale: (channels, blocks) float32, positive.
        largest: largest integer; the least is its negative.
        block: inputs that share a scale.
        signs: whether the integers are 1 and -1 alone.
    """

    scale: Tensor
    largest: int
    block: int
    signs: bool = False

    def wide(self) -> Tensor:
        """Return the scale of every weight, (channels, inputs)."""
        return self.scale.repeat_interleave(self.block, dim=1)

    def nearest(self, weight: Tensor) -> Tensor:
        """Return the integers (channels, inputs), as int8, next to a float matrix."""
        if self.signs:
            return torch.where(weight < 0, -1, 1).to(torch.int8)
        wide = self.wide().to(weight.dtype)
        return (weight / wide).round().clamp(-self.largest, self.largest).to(torch.int8)

    def values(self, integers: Tensor) -> Tensor:
        """Return the float32 weights of integers (channels, inputs)."""
        return integers * self.wide()


def weight_grid(weight: Tensor, bits: int, block: int, *, least_error: bool) -> WeightGrid:
    """Choose the scales of a matrix (channels, inputs) of weights.

    Args:
        bits: integers are at most ``2 ** (bits - 1) - 1`` in size; 1 leaves signs, times the mean size.
        block: inputs that share a scale; 0 for all, as for layers whose inputs it does not divide: runtimes
            refuse blocks of unequal size.
        least_error: whether the range has the least squared error; else it covers all weights.
    """
    channels, inputs = weight.shape
    size = block if block and inputs % block == 0 else inputs
    largest = max(2 ** (bits - 1) - 1, 1)
    parts = weight.double().reshape(channels, inputs // size, size)
    top = parts.abs().amax(-1)
    scale = top / largest
    if bits == 1:
        scale = parts.abs().mean(-1)  # of the least squared error
    elif least_error:
        scale = _least_error(parts, top, largest)
    # A block of zeros has no scale of its own; any will do, but that of a bias follows from it.
    used = scale[scale > 0]
    spare = used.mean() if len(used) else torch.ones((), dtype=scale.dtype)
    scale = torch.where(scale > 0, scale, spare).float()
    return WeightGrid(scale.clamp(min=torch.finfo(torch.float32).tiny), largest, size, bits == 1)


def scale_for_bias(scale: Tensor, bias: Tensor, step: float) -> Tensor:
    """Return scales (channels,) that are wide enough for biases of 32 bits, in steps of scale times ``step``.

    A channel of tiny weights gets a coarser scale, or its bias would overflow.
    """
    return torch.maximum(scale, 2 * bias.abs() / (step * _BIAS_STEPS))


def _least_error(parts: Tensor, top: Tensor, largest: int) -> Tensor:
    best, least = top / largest, torch.full_like(top, float("inf"))
    for share in _SHARES:
        scale = share * top / largest
        safe = torch.where(scale > 0, scale, 1.0)[..., None]
        rounded = (parts / safe).round_().clamp_(-largest, largest) * safe
        error = (rounded - parts).square_().sum(-1)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best


class Range:
    """The values that one activation takes, over all batches: first their limits, then a histogram.

    Args:
        name: of the activation, for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.low = self.high = 0.0
        self.spread = 0.0
        self._first: float | None = None
        self._histogram: Tensor | None = None

    def see_limits(self, values: Tensor) -> None:
        """Widen the limits; they always hold 0, which padding must hit exactly. No values change nothing.

        Raises:
            AmcError: a value is not finite.
        """
        if not values.numel():
            return
        low, high = (float(each) for each in values.aminmax())
        if not (abs(low) < float("inf") and abs(high) < float("inf")):  # also false for NaN
            raise AmcError(
                f"activation {self.name!r} is NaN or infinite on the calibration images; likely cause: "
                "diverged training"
            )
        first = low if self._first is None else self._first
        self._first = first
        self.spread = max(self.spread, abs(low - first), abs(high - first))
        self.low, self.high = min(self.low, low), max(self.high, high)

    def see_histogram(self, values: Tensor) -> None:
        """Count the values; the limits must be known."""
        if self.high > self.low and values.numel():
            for part in values.flatten().split(_COUNTED):
                counts = torch.histc(part.float(), _BINS, self.low, self.high).double()
                self._histogram = counts if self._histogram is None else self._histogram + counts

    def grid(self, settings: QuantizeSettings) -> tuple[float, int]:
        """Return scale and zero point of the range that the settings ask for."""
        low, high = self.low, self.high
        if self._histogram is not None and settings.ranges == "percentile":
            low, high = self._percentile(settings.percentile)
        elif self._histogram is not None and settings.ranges == "mse":
            low, high = self._least_error()
        return scale_and_zero(low, high)

    def _centres(self) -> Tensor:
        step = (self.high - self.low) / _BINS
        return self.low + step * (torch.arange(_BINS, dtype=torch.float64) + 0.5)

    def _percentile(self, percent: float) -> tuple[float, float]:
        assert self._histogram is not None
        shares = self._histogram.cumsum(0) / self._histogram.sum()
        outside = (1 - percent / 100) / 2 if self.low < 0 < self.high else 1 - percent / 100
        edges = torch.linspace(self.low, self.high, _BINS + 1, dtype=torch.float64)
        low = float(edges[int(torch.searchsorted(shares, outside))]) if self.low < 0 else 0.0
        top = min(int(torch.searchsorted(shares, 1 - outside)) + 1, _BINS)
        high = float(edges[top]) if self.high > 0 else 0.0
        return min(low, 0.0), max(high, 0.0)

    def _least_error(self) -> tuple[float, float]:
        assert self._histogram is not None
        centres, counts = self._centres(), self._histogram
        # Both ends are tried together, each end alone where the other is 0.
        shares = _SHARES.tolist()
        tried = [(share * self.low, share * self.high) for share in shares]
        tried += [(self.low, share * self.high) for share in shares if self.low < 0]
        tried += [(share * self.low, self.high) for share in shares if self.high > 0 > self.low]
        errors = []
        for low, high in tried:
            scale, zero = scale_and_zero(low, high)
            rounded = ((centres / scale).round() + zero).clamp(LOW, HIGH).sub(zero) * scale
            errors.append(float(((rounded - centres).square() * counts).sum()))
        return tried[errors.index(min(errors))]


def scale_and_zero(low: float, high: float) -> tuple[float, int]:
    """Return scale, a float32 number, and zero point of an unsigned grid that covers ``low`` to ``high``."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(torch.tensor((high - low) / (HIGH - LOW), dtype=torch.float32))
    if not scale > torch.finfo(torch.float32).tiny:
        return 1.0, 0
    return scale, min(max(round(-low / scale), LOW), HIGH)
