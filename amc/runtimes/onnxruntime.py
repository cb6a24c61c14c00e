"""ONNX Runtime on the CPU, and its providers for NVIDIA devices."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from amc.errors import AmcError
from amc.runtimes.protocol import Prepared, Shape, prepare_file
from amc.third_party import missing

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime: float32, all graph optimisations, sequential, idle threads do not spin.

    ``provider`` is what runs the graph. Calls of a GPU provider copy the images to the device and the logits
    back, as a caller of its would, and are timed by the wall clock.
    """

    name: str = "onnxruntime"
    precision: str = "float32"
    provider: str = "CPUExecutionProvider"

    def available(self) -> str | None:
        """Return None if onnxruntime, with the provider, and the exporter's packages are installed."""
        if (absent := missing("onnxruntime", "onnx", "onnxscript")) is not None:
            return absent
        if self.provider in self.runtime().get_available_providers():
            return None
        return f"onnxruntime has no {self.provider} here (it comes with onnxruntime-gpu)"

    def version(self) -> str:
        """Return the version of onnxruntime."""
        return str(self.runtime().__version__)

    def prepare(self, model: nn.Module, input_shape: Shape, batch: int, threads: int) -> Prepared:
        """Export ``model`` in memory and return one run of its session."""
        prepared = prepare_file(self, model, input_shape, batch, threads)
        if self.provider == "CPUExecutionProvider":
            return prepared
        import torch

        device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        return replace(prepared, clock=("perf_counter", time.perf_counter), device=device)

    def convert(self, model: nn.Module, input_shape: Shape, batch: int) -> bytes:
        """Return the ONNX file, whose batch size is free."""
        from amc.runtimes.onnx_file import onnx_bytes

        return onnx_bytes(model, input_shape)

    def runtime(self) -> Any:
        """Import onnxruntime."""
        from amc.runtimes.onnx_file import onnxruntime_module

        return onnxruntime_module()

    def load(self, content: bytes, images: Any, threads: int) -> Callable[[], Any]:
        """Return one run of a session."""
        from amc.runtimes.onnx_session import open_session

        session = open_session(self.runtime(), content, threads, self.provider)
        if session.get_providers()[0] != self.provider:
            raise AmcError(
                f"{self.name}: onnxruntime fell back to {session.get_providers()[0]}; "
                "likely the CUDA or TensorRT libraries that it was built for are missing"
            )
        name = session.get_inputs()[0].name

        def run() -> Any:
            return session.run(None, {name: images})[0]

        return run
