"""ONNX Runtime on the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime's CPU provider: float32, all graph optimisations, sequential, idle threads do not spin."""

    name: str = "onnxruntime"
    precision: str = "float32"

    def available(self) -> str | None:
        """Return None if onnxruntime and the exporter's packages are installed, else which one is missing."""
        missing = [
            name for name in ("onnxruntime", "onnx", "onnxscript") if importlib.util.find_spec(name) is None
        ]
        return f"not installed: {', '.join(missing)}" if missing else None

    def version(self) -> str:
        """Return the version of onnxruntime."""
        import onnxruntime

        return str(onnxruntime.__version__)

    def prepare(
        self, model: nn.Module, input_shape: tuple[int, int, int], batch: int, threads: int
    ) -> Callable[[], None]:
        """Export ``model`` in memory and return one run of its session on a fixed random input."""
        import numpy as np
        import onnxruntime

        from amc.export.onnx import INPUT_NAME, onnx_bytes

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(
            onnx_bytes(model, input_shape), options, providers=["CPUExecutionProvider"]
        )
        images = np.random.default_rng(0).standard_normal((batch, *input_shape), dtype=np.float32)

        def run() -> None:
            session.run(None, {INPUT_NAME: images})

        return run
