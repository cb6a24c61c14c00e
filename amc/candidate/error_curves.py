"""Error curves of channel groups, corrected by what pruning them really does to the outputs.

The curves of ``amc.importance.elimination`` take errors at different places of a map for independent. They
are alike: a global average evens independent errors out and keeps common ones, so that the last layers
before it are underestimated most, by up to 90 times on MobileNet-V2. The form of a curve is right all the
same: a factor that was measured at two widths, and varies little between them, is enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from amc.candidate.builder import CandidateBuilder
from amc.candidate.evaluator import Evaluator
from amc.errors import AmcError
from amc.scoring.run import outputs
from amc.scoring.scores import likeness

SHARES = (0.3, 0.7)
"""Of a group's channels: where its curve is measured."""

Curves = Mapping[str, tuple[float, ...]]


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
        curves: group name -> error at every width (``amc.importance.elimination.Elimination.errors``).
        dense: channels of every group, in the order of ``curves``.
        error_of: error of the network's outputs at some widths, in the unit of the curves.
        progress: called with 1 after every measurement.

    Raises:
        AmcError: a measured error is not finite.
    """
    found = {}
    for place, (name, curve) in enumerate(curves.items()):
        factors: dict[int, float] = {}
        for width in measured_widths(dense[place]):
            error = error_of((*dense[:place], width, *dense[place + 1 :]))
            if not math.isfinite(error):
                raise AmcError(f"the network gives NaN or infinity with {width} channels in group {name!r}")
            factors[width] = max(error, 1e-12) / max(curve[width], 1e-12)
            if progress is not None:
                progress(1)
        found[name] = _scaled(curve, factors)
    return found


def _scaled(curve: tuple[float, ...], factors: Mapping[int, float]) -> tuple[float, ...]:
    """Multiply a curve by factors known at some widths (interpolated in the logarithm, constant outside)."""
    if not factors:
        return curve
    logs = np.interp(np.arange(len(curve)), [*factors], np.log([*factors.values()]))
    scaled = np.array(curve) * np.exp(logs)
    # More channels never lose more, whatever noise says.
    return tuple(np.maximum.accumulate(scaled[::-1])[::-1].tolist())


class ErrorCurves:
    """Error curves of all groups of one network, measured when first asked for.

    An error is that of the network's outputs, as a share of their variance over images.

    Args:
        evaluator: its builder estimates the curves; on the first of its images they are measured.
    """

    def __init__(self, evaluator: Evaluator[CandidateBuilder]) -> None:
        self._evaluator = evaluator
        self._known: Curves | None = None

    def __call__(self, progress: Callable[[int], Any] | None = None) -> Curves:
        """Return name of a group -> error at every width from 0 on; {} if the order of channels gives none.

        Args:
            progress: called with 1 after every network that is measured.

        Raises:
            AmcError: a measured error is not finite.
        """
        if self._known is None:
            builder = self._evaluator.builder
            estimated, count = builder.estimated_errors, builder.settings.measured_images
            self._known = estimated
            if estimated and count:
                error_of = self._output_error(self._evaluator.images[:count].float())
                self._known = measured_curves(estimated, builder.dense_widths, error_of, progress=progress)
        return self._known

    def _output_error(self, images: Tensor) -> Callable[[Sequence[int]], float]:
        """Return the error of a candidate's outputs, as a function of its widths."""
        evaluator = self._evaluator
        measuring = evaluator.builder.measuring()

        def run(widths: Sequence[int]) -> Tensor:
            with measuring(widths) as network:
                return outputs(network, images, evaluator.batch_size)

        dense = run(evaluator.builder.dense_widths)
        return lambda widths: -likeness(run(widths), dense)
