"""ExecuTorch with the XNNPACK delegate: on this machine's CPU what runs on Android's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from amc.latency.protocol import Prepared, Shape, prepare_file
from amc.third_party import missing

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ExecuTorch:
    """ExecuTorch's Python runtime on a .pte lowered to XNNPACK: float32, fixed batch size."""

    name: str = "executorch"
    precision: str = "float32"

    def available(self) -> str | None:
        """Return None if executorch and torchao, which it converts with, are installed."""
        return missing("executorch", "torchao")

    def version(self) -> str:
        """Return the version of ExecuTorch."""
        return metadata.version("executorch")

    def prepare(self, model: nn.Module, input_shape: Shape, batch: int, threads: int) -> Prepared:
        """Lower ``model`` and return one run of its ``forward``."""
        return prepare_file(self, model, input_shape, batch, threads)

    def convert(self, model: nn.Module, input_shape: Shape, batch: int) -> bytes:
        """Return the .pte file."""
        from amc.export.executorch import executorch_bytes

        return executorch_bytes(model, input_shape, batch)

    def runtime(self) -> Any:
        """Import the Python bindings."""
        from amc.export.executorch import bindings

        return bindings()

    def load(self, content: bytes, images: Any, threads: int) -> Callable[[], Any]:
        """Return one run of ``forward``; sets the size of the thread pool that the process shares."""
        from amc.export.executorch import load_executorch

        return load_executorch(content, images, threads)
