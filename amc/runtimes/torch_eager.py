"""Eager PyTorch on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amc.runtimes.protocol import Prepared, Shape

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class TorchEager:
    """Eager PyTorch: float32, channels_last, inference mode.

    Batch normalisation stays a layer of its own here. Graph runtimes such as onnxruntime fold it into the
    convolutions, so it costs nothing there.
    """

    name: str = "torch"
    precision: str = "float32"

    def available(self) -> str | None:
        """Return None: PyTorch is a dependency of this package."""
        return None

    def version(self) -> str:
        """Return the version of PyTorch."""
        import torch

        return str(torch.__version__)

    def prepare(self, model: nn.Module, input_shape: Shape, batch: int, threads: int) -> Prepared:
        """Return one eager forward pass of a copy of ``model``; sets torch's thread count for the process."""
        import torch

        from amc.runtimes.reference import laid_out, random_batch

        torch.set_num_threads(threads)
        network, images = laid_out(model, random_batch(input_shape, batch), device="cpu")

        def run() -> Any:
            with torch.inference_mode():
                return network(images())

        return Prepared(run)
