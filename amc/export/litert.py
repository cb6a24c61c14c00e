"""LiteRT (formerly TensorFlow Lite) flatbuffer (.tflite), float32, through litert-torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from amc.errors import AmcError
from amc.export.reference import cause, eval_on_cpu, random_batch
from amc.third_party import quiet

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
