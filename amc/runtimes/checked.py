"""Load a network into a runtime, and compare its outputs with those of eager PyTorch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from amc.runtimes.protocol import TOLERANCES, Backend, Prepared, Shape

if TYPE_CHECKING:
    from torch import nn


def prepare_checked(
    backend: Backend, model: nn.Module, input_shape: Shape, batch: int, threads: int
) -> Prepared:
    """Prepare ``model`` and compare its logits with eager's.

    Raises:
        AmcError: It does not convert, or computes something else than eager does.
    """
    from amc.runtimes.reference import check_agreement, eager_logits, random_batch

    prepared = backend.prepare(model, input_shape, batch, threads)
    eager = eager_logits(model, random_batch(input_shape, batch))
    tolerance = TOLERANCES.get(backend.precision, math.inf)
    check_agreement(prepared.run(), eager, tolerance, f"{backend.name} ({backend.precision})")
    return prepared
