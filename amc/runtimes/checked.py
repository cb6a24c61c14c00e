"""Load a network into a runtime, once its logits agree with those of eager PyTorch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from amc.runtimes.protocol import TOLERANCES, Backend, Prepared, Shape
from amc.runtimes.reference import check_agreement, eager_logits, random_batch, running

if TYPE_CHECKING:
    from torch import nn


def prepare_checked(
    backend: Backend, model: nn.Module, input_shape: Shape, batch: int, threads: int
) -> Prepared:
    """Prepare ``model`` and compare its logits with eager's.

    Args:
        backend: The runtime.
        model: The network.
        input_shape: One image, (C, H, W).
        batch: Images per call.
        threads: Threads the runtime may use.

    Raises:
        AmcError: The network does not convert, or its logits differ from those of eager PyTorch.
    """
    from amc.quantization.layers import is_quantized

    with running(f"{type(model).__name__} in {backend.name}"):
        prepared = backend.prepare(model, input_shape, batch, threads)
        found = prepared.run()
    eager = eager_logits(model, random_batch(input_shape, batch))
    # One rounding the other way moves the outputs of a quantized network: real images judge those.
    tolerance = math.inf if is_quantized(model) else TOLERANCES.get(backend.precision, math.inf)
    check_agreement(found, eager, tolerance, f"{backend.name} ({backend.precision})")
    return prepared
