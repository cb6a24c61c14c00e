"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amc.latency.protocol import Prepared, Shape, missing, prepare_file

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime's CPU provider: float32, all graph optimisations, sequential, idle threads do not spin."""

    name: str = "onnxruntime"
    precision: str = "float32"

    def available(self) -> str | None:
        """Return None if onnxruntime and the exporter's packages are installed, else which one is missing."""
        return missing("onnxruntime", "onnx", "onnxscript")

    def version(self) -> str:
        """Return the version of onnxruntime."""
        import onnxruntime

        return str(onnxruntime.__version__)

    def prepare(self, model: nn.Module, input_shape: Shape, batch: int, threads: int) -> Prepared:
        """Export ``model`` in memory and return one run of its session."""
        return prepare_file(self, model, input_shape, batch, threads)

    def convert(self, model: nn.Module, input_shape: Shape, batch: int) -> bytes:
        """Return the ONNX file, whose batch size is free."""
        from amc.export.onnx import onnx_bytes

        return onnx_bytes(model, input_shape)

    def load(self, content: bytes, images: Any, threads: int) -> Callable[[], Any]:
        """Return one run of a session."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        (entry,) = session.get_inputs()

        def run() -> Any:
            return session.run(None, {entry.name: images})[0]

        return run
