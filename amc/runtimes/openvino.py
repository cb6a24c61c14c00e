"""OpenVINO: an ONNX file in memory, compiled for the CPU in float32."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amc.runtimes.protocol import Prepared, Shape, prepare_file
from amc.third_party import missing

if TYPE_CHECKING:
    from torch import nn


def load_openvino(source: bytes | Path, images: Any, threads: int) -> Callable[[], Any]:
    """Return one inference request, compiled for the shape of ``images``; it returns the logits.

    ``source`` is the content of an ONNX file, or the path of any file that OpenVINO reads.
    """
    core = openvino_core()
    network = core.read_model(source)
    network.reshape(list(images.shape))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # bfloat16 is the default where the CPU has it
    }
    request = core.compile_model(network, "CPU", settings).create_infer_request()

    def run() -> Any:
        return request.infer([images], share_inputs=True, share_outputs=True)[0]

    return run


@functools.cache
def openvino_core() -> Any:
    """Return the one Core of this process.

    Where the last Core goes, its plugins are unloaded, and what they have left registered crashes the next
    fork of the process.
    """
    return openvino_module().Core()


def openvino_module() -> Any:
    """Import OpenVINO without the package by which it reports its import to its maker over the network.

    OpenVINO has a stub for where ``openvino_telemetry`` is not installed; None stands for that here.
    """
    blocked = "openvino_telemetry" not in sys.modules
    if blocked:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        if blocked:
            del sys.modules["openvino_telemetry"]
    return openvino


@dataclass(frozen=True)
class OpenVino:
    """OpenVINO's CPU device on the ONNX file: float32, one stream, compiled for the given batch size."""

    name: str = "openvino"
    precision: str = "float32"

    def available(self) -> str | None:
        """Return None if openvino and the ONNX exporter's packages are installed, else which is missing."""
        return missing("openvino", "onnx", "onnxscript")

    def version(self) -> str:
        """Return the version of OpenVINO."""
        return str(openvino_module().__version__)

    def prepare(self, model: nn.Module, input_shape: Shape, batch: int, threads: int) -> Prepared:
        """Export ``model`` as ONNX in memory and return one inference request of it."""
        return prepare_file(self, model, input_shape, batch, threads)

    def convert(self, model: nn.Module, input_shape: Shape, batch: int) -> bytes:
        """Return the ONNX file, which OpenVINO reads as it is."""
        from amc.runtimes.onnx_file import onnx_bytes

        return onnx_bytes(model, input_shape)

    def runtime(self) -> Any:
        """Import OpenVINO."""
        return openvino_module()

    def load(self, content: bytes, images: Any, threads: int) -> Callable[[], Any]:
        """Return one inference request on the ONNX file, which OpenVINO reads as it is."""
        return load_openvino(content, images, threads)
