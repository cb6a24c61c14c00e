"""LiteRT (formerly TensorFlow Lite) with XNNPACK."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from amc.errors import AmcError
from amc.runtimes.protocol import Prepared, Shape, prepare_file
from amc.runtimes.reference import cause, eval_on_cpu, random_batch
from amc.third_party import missing, quiet

if TYPE_CHECKING:
    from torch import nn


def litert_bytes(model: nn.Module, input_shape: tuple[int, int, int], batch: int = 1) -> bytes:
    """Return ``model`` as a .tflite of fixed batch size, input (batch, C, H, W), not compared with eager.

    Raises:
        AmcError: The model cannot be converted.
    """
    try:
        with quiet():
            import litert_torch

            converted = litert_torch.convert(eval_on_cpu(model), (random_batch(input_shape, batch),))
            return bytes(converted.model_content())
    except Exception as error:  # its passes have no common base class of errors
        raise AmcError(
            f"{type(model).__name__} does not convert to LiteRT for an input of shape "
            f"{tuple(input_shape)}; likely cause: {cause(error)}"
        ) from error


def load_litert(content: bytes, images: Any, threads: int) -> Callable[[], Any]:
    """Return one invocation of a .tflite on a float32 array, set once; it returns the logits."""
    make = interpreter_class()
    with quiet():
        interpreter = make(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images)
    output = interpreter.get_output_details()[0]["index"]

    def run() -> Any:
        interpreter.invoke()
        return interpreter.get_tensor(output)

    return run


def interpreter_class() -> Any:
    """Import LiteRT's interpreter, quietly."""
    with quiet():
        from ai_edge_litert.interpreter import Interpreter
    return Interpreter


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
        return litert_bytes(model, input_shape, batch)

    def runtime(self) -> Any:
        """Import the interpreter."""
        return interpreter_class()

    def load(self, content: bytes, images: Any, threads: int) -> Callable[[], Any]:
        """Return one invocation of an interpreter."""
        return load_litert(content, images, threads)
