"""LiteRT (formerly TensorFlow Lite), which applies XNNPACK: a .tflite of fixed batch size, float32."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import TYPE_CHECKING, Any

from amc.runtimes.protocol import FileRuntime
from amc.runtimes.reference import conversion, eval_on_cpu, random_batch
from amc.third_party import quiet

if TYPE_CHECKING:
    from torch import nn


def convert(model: nn.Module, input_shape: tuple[int, int, int], batch: int) -> bytes:
    """Return ``model`` as a .tflite with an input of (batch, C, H, W), not compared with eager.

    Raises:
        AmcError: The model cannot be converted.
    """
    with conversion(model, input_shape, "convert to LiteRT"):
        import litert_torch

        converted = litert_torch.convert(eval_on_cpu(model), (random_batch(input_shape, batch),))
        return bytes(converted.model_content())


def load(content: bytes, images: Any, threads: int) -> Callable[[], Any]:
    """Return one run of a .tflite on a (batch, C, H, W) float32 array, which returns the logits."""
    make = _interpreter_class()
    with quiet():
        interpreter = make(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images)
    output = interpreter.get_output_details()[0]["index"]

    def run() -> Any:
        interpreter.invoke()
        return interpreter.get_tensor(output)

    return run


def _interpreter_class() -> Any:
    with quiet():
        from ai_edge_litert.interpreter import Interpreter
    return Interpreter


LITERT = FileRuntime(
    name="litert",
    packages=("litert_torch", "ai_edge_litert"),
    version=lambda: metadata.version("ai-edge-litert"),
    runtime=_interpreter_class,
    convert=convert,
    load=load,
)
