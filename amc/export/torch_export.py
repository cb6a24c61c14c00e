"""PyTorch's exported program (.pt2), which other PyTorch tools compile or convert further."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from amc.runtimes.protocol import Shape
from amc.runtimes.reference import conversion, eval_on_cpu, random_batch
from amc.third_party import quiet

if TYPE_CHECKING:
    from torch import nn


def convert(model: nn.Module, input_shape: Shape, batch: int = 1) -> bytes:
    """Return ``model`` as a .pt2, not compared with eager.

    Args:
        model: The network.
        input_shape: One image, (C, H, W).
        batch: Not used: the program takes any batch size.

    Raises:
        AmcError: The model cannot be exported.
    """
    import torch

    buffer = io.BytesIO()
    free = ({0: torch.export.Dim("batch")},)
    with conversion(model, input_shape, "export with torch.export"):
        program = torch.export.export(
            eval_on_cpu(model), (random_batch(input_shape, 2),), dynamic_shapes=free
        )
        torch.export.save(program, buffer)
    return buffer.getvalue()


def load(content: bytes, images: Any, threads: int) -> Callable[[], Any]:
    """Return one eager run of a .pt2 on a (batch, C, H, W) float32 array, which returns the logits.

    Torch's number of threads stays as it is; ``threads`` is not used.
    """
    import torch

    with quiet():
        module = torch.export.load(io.BytesIO(content)).module()
    batch = torch.from_numpy(images)

    def run() -> Any:
        with torch.inference_mode():
            return module(batch.clone())  # a network may write into its input

    return run
