"""PyTorch's exported program (.pt2), which other PyTorch tools compile or convert further."""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib import metadata
from typing import TYPE_CHECKING, Any

from amc.runtimes.protocol import FileRuntime, Shape
from amc.runtimes.reference import conversion, eval_on_cpu, random_batch
from amc.third_party import quiet

if TYPE_CHECKING:
    from torch import nn


def convert(model: nn.Module, input_shape: Shape, batch: int = 1) -> bytes:
    """Return ``model`` as a .pt2, not compared with eager.

    Args:
        model: The network; if it is quantized, integers and scales are inputs of PyTorch's own operators.
        input_shape: One image, (C, H, W).
        batch: Not used: the program takes any batch size.

    Raises:
        AmcError: The model cannot be exported.
    """
    import torch

    from amc.quantization.layers import is_quantized

    buffer = io.BytesIO()
    free = ({0: torch.export.Dim("batch")},)
    with conversion(model, input_shape, "export with torch.export"):
        network = eval_on_cpu(model)
        if is_quantized(network):
            from amc.quantization.written.explicit import explicit

            network = explicit(network)
        program = torch.export.export(network, (random_batch(input_shape, 2),), dynamic_shapes=free)
        torch.export.save(program, buffer)
    return buffer.getvalue()


def load(content: bytes, images: Any, threads: int) -> Callable[[], Any]:
    """Return one eager run of a .pt2 on a (batch, C, H, W) float32 array, which returns the logits.

    Torch's number of threads stays as it is; ``threads`` is not used.
    """
    import torch
    from torch.ao.quantization.fx import _decomposed

    assert _decomposed  # it registers the operators of quantized networks
    with quiet():
        module = torch.export.load(io.BytesIO(content)).module()
    batch = torch.from_numpy(images)

    def run() -> Any:
        with torch.inference_mode():
            return module(batch.clone())  # a network may write into its input

    return run


TORCH_EXPORT = FileRuntime(
    name="torch_export",
    packages=(),
    version=lambda: metadata.version("torch"),
    runtime=lambda: None,
    convert=convert,
    load=load,
    methods={
        "static_int8": "eager PyTorch computes it in float32: the file is to be compiled or lowered further",
        "dynamic_int8": "eager PyTorch computes it in float32",
        "weight_only": "eager PyTorch computes it in float32, and a weight takes a byte",
        "fp16": "",
        "bf16": "",
    },
)
