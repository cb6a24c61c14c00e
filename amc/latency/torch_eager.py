"""Eager PyTorch on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class TorchEager:
    """Eager PyTorch: float32, channels_last, inference mode.

    Batch normalisation is not folded into the convolutions, so it costs what it costs in a training
    framework; graph runtimes such as onnxruntime fold it away.
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

    def prepare(
        self, model: nn.Module, input_shape: tuple[int, int, int], batch: int, threads: int
    ) -> Callable[[], None]:
        """Return one eager forward pass of a copy of ``model``; sets torch's thread count for the process."""
        import torch

        torch.set_num_threads(threads)
        network = copy.deepcopy(model).cpu().eval().to(memory_format=torch.channels_last)
        generator = torch.Generator().manual_seed(0)
        images = torch.randn((batch, *input_shape), generator=generator).to(memory_format=torch.channels_last)

        def run() -> None:
            with torch.inference_mode():
                network(images)

        return run
