"""PyTorch's exported program (.pt2), which other PyTorch tools compile or convert further."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from amc.errors import AmcError
from amc.runtimes.reference import cause, eval_on_cpu, random_batch
from amc.third_party import quiet

if TYPE_CHECKING:
    from torch import nn


def torch_export_bytes(model: nn.Module, input_shape: tuple[int, int, int]) -> bytes:
    """Return ``model`` as a .pt2 with a free batch size, not compared with eager.

    Raises:
        AmcError: The model cannot be exported.
    """
    import torch

    buffer = io.BytesIO()
    batch = torch.export.Dim("batch")
    try:
        with quiet():
            program = torch.export.export(
                eval_on_cpu(model), (random_batch(input_shape, 2),), dynamic_shapes=({0: batch},)
            )
            torch.export.save(program, buffer)
    except Exception as error:  # its passes have no common base class of errors
        raise AmcError(
            f"{type(model).__name__} does not export with torch.export for an input of shape "
            f"{tuple(input_shape)}; likely cause: {cause(error)}"
        ) from error
    return buffer.getvalue()


def load_torch_export(content: bytes, images: Any, threads: int) -> Callable[[], Any]:
    """Return one eager run of a .pt2 on a float32 array; torch's number of threads is left as it is."""
    import torch

    with quiet():
        module = torch.export.load(io.BytesIO(content)).module()
    batch = torch.from_numpy(images)

    def run() -> Any:
        with torch.inference_mode():
            return module(batch)

    return run
