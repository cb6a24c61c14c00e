"""Error curves of channel groups, scaled to the measured output error of pruning each group alone.

The estimated curves of ``amc.importance.elimination`` assume that errors at different positions of a feature
map are independent. In fact they are correlated: global average pooling cancels independent errors but keeps
common ones. The last layers before the pooling are therefore underestimated most, by up to 90 times on
MobileNet-V2. The shape of the estimated curve is right; only its scale is wrong. Two measurements fix the
scale.

Some errors the estimate does not see, such as those of a map that is also summed over its channels, which no
layer reads. Where it sees none and one is measured, the even curve (``amc.budget.allocation.even_curve``)
through the measured error takes its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from amc.budget.allocation import even_curve
from amc.candidate.builder import CandidateBuilder
from amc.candidate.evaluator import Evaluator
from amc.errors import AmcError
from amc.scoring.run import outputs
from amc.scoring.scores import likeness

SHARES = (0.3, 0.7)
"""The widths at which a curve is measured, as shares of the group's channels."""

LEAST = 1e-12
"""Smallest error that curves are scaled by; estimates up to it count as none."""
SEEN = 1e-6
"""Measured errors above it are no rounding."""

Array = npt.NDArray[np.float64]
Curves = Mapping[str, tuple[float, ...]]
"""Name of a group -> output error at every width, from 0 channels to all."""


def measured_widths(dense: int) -> tuple[int, ...]:
    """Return the widths at which a group of ``dense`` channels is measured."""
    found = sorted({round(share * dense) for share in SHARES})
    return tuple(width for width in found if 0 < width < dense)


def measured_curves(
    curves: Curves,
    dense: Sequence[int],
    error_of: Callable[[tuple[int, ...]], float],
    *,
    progress: Callable[[int], Any] | None = None,
) -> dict[str, tuple[float, ...]]:
    """Scale estimated curves to measured errors.

    Args:
        curves: estimated curves (``amc.importance.elimination.Elimination.errors``).
        dense: channels of every group, in the order of ``curves``.
        error_of: measures the error of the network's outputs at given widths, in the unit of the curves.
        progress: called with 1 after every measurement.

    Raises:
        AmcError: a measured error is not finite.
    """
    found = {}
    for place, (name, curve) in enumerate(curves.items()):
        measured: dict[int, float] = {}
        for width in measured_widths(dense[place]):
            error = error_of((*dense[:place], width, *dense[place + 1 :]))
            if not math.isfinite(error):
                raise AmcError(f"the network gives NaN or infinity with {width} channels in group {name!r}")
            measured[width] = error
            if progress is not None:
                progress(1)
        found[name] = _scaled(curve, measured)
    return found


def _scaled(curve: tuple[float, ...], measured: Mapping[int, float]) -> tuple[float, ...]:
    """Scale a curve to the errors measured at some widths."""
    if not measured:
        return curve
    unseen = {width: error for width, error in measured.items() if curve[width] <= LEAST and error > SEEN}
    others = {width: error for width, error in measured.items() if width not in unseen}
    scaled = _through(np.array(curve), others)
    if unseen:
        scaled = np.maximum(scaled, _through(np.array(even_curve(len(curve) - 1)), unseen))
    # Keep the curve monotone: noise must not make a wider group worse than a narrower one.
    return tuple(np.maximum.accumulate(scaled[::-1])[::-1].tolist())


def _through(curve: Array, errors: Mapping[int, float]) -> Array:
    """Multiply a curve by factors that lead to the errors, log-linear between them and constant outside."""
    if not errors:
        return curve
    factors = [max(error, LEAST) / max(curve[width], LEAST) for width, error in errors.items()]
    return curve * np.exp(np.interp(np.arange(len(curve)), [*errors], np.log(factors)))


class ErrorCurves:
    """Error curves of all groups of one network, measured at the first call.

    An error is the squared error of the network's outputs relative to their variance over images.

    Args:
        evaluator: its builder gives the estimated curves; they are measured on the first of its images.
    """

    def __init__(self, evaluator: Evaluator[CandidateBuilder]) -> None:
        self._evaluator = evaluator
        self._known: Curves | None = None

    def __call__(self, progress: Callable[[int], Any] | None = None) -> Curves:
        """Return the error curves, or {} if the channel order estimates none.

        Args:
            progress: called with 1 after every measured network.

        Raises:
            AmcError: a measured error is not finite.
        """
        if self._known is None:
            builder = self._evaluator.builder
            estimated, count = builder.estimated_errors, builder.settings.measured_images
            self._known = estimated
            if estimated and count:
                error_of = self._output_error(self._evaluator.images[:count])
                self._known = measured_curves(estimated, builder.dense_widths, error_of, progress=progress)
        return self._known

    def _output_error(self, images: Tensor) -> Callable[[Sequence[int]], float]:
        """Return a function from widths to the error of that candidate's outputs."""
        evaluator, builder = self._evaluator, self._evaluator.builder
        as_judged = builder.settings.measured_in_sequence and builder.settings.sequential_images > 0
        lend = builder.network if as_judged else builder.measuring()
        shown = images if as_judged else images.float()

        def run(widths: Sequence[int]) -> Tensor:
            with lend(widths) as network:
                return outputs(network, shown, evaluator.batch_size)

        dense = run(evaluator.builder.dense_widths)
        return lambda widths: -likeness(run(widths), dense)
