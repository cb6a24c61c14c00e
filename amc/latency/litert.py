"""LiteRT (formerly TensorFlow Lite) with the XNNPACK delegate."""

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
class LiteRT:
    """LiteRT's interpreter on a .tflite, XNNPACK applied by default: float32, fixed batch size."""

    name: str = "litert"
    precision: str = "float32"

    def available(self) -> str | None:
        """Return None if the converter and the interpreter are installed, else which one is missing."""
        return missing("litert_torch", "ai_edge_litert")

    def version(self) -> str:
        """Return the version of the interpreter."""
        return metadata.version("ai-edge-litert")

    def prepare(self, model: nn.Module, input_shape: Shape, batch: int, threads: int) -> Prepared:
        """Convert ``model`` and return one invocation of its interpreter."""
        return prepare_file(self, model, input_shape, batch, threads)

    def convert(self, model: nn.Module, input_shape: Shape, batch: int) -> bytes:
        """Return the .tflite file."""
        from amc.export.litert import litert_bytes

        return litert_bytes(model, input_shape, batch)

    def runtime(self) -> Any:
        """Import the interpreter."""
        from amc.export.litert import interpreter_class

        return interpreter_class()

    def load(self, content: bytes, images: Any, threads: int) -> Callable[[], Any]:
        """Return one invocation of an interpreter."""
        from amc.export.litert import load_litert

        return load_litert(content, images, threads)
