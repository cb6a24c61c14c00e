"""OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amc.latency.protocol import Prepared, Shape, prepare_file
from amc.third_party import missing

if TYPE_CHECKING:
    from torch import nn


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
        from amc.export.openvino import openvino_module

        return str(openvino_module().__version__)

    def prepare(self, model: nn.Module, input_shape: Shape, batch: int, threads: int) -> Prepared:
        """Export ``model`` as ONNX in memory and return one inference request of it."""
        return prepare_file(self, model, input_shape, batch, threads)

    def convert(self, model: nn.Module, input_shape: Shape, batch: int) -> bytes:
        """Return the ONNX file, which OpenVINO reads as it is."""
        from amc.export.onnx import onnx_bytes

        return onnx_bytes(model, input_shape)

    def runtime(self) -> Any:
        """Import OpenVINO."""
        from amc.export.openvino import openvino_module

        return openvino_module()

    def load(self, content: bytes, images: Any, threads: int) -> Callable[[], Any]:
        """Return one inference request on the ONNX file, which OpenVINO reads as it is."""
        from amc.export.openvino import load_openvino

        return load_openvino(content, images, threads)
