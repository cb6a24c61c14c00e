"""LiteRT (formerly TensorFlow Lite), which applies XNNPACK: a .tflite of fixed batch size, float32
or int8."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from amc.runtimes.protocol import FileRuntime
from amc.runtimes.reference import conversion, eval_on_cpu, random_batch, with_xnnpack_sums
from amc.third_party import quiet

if TYPE_CHECKING:
    from torch import nn


def convert(model: nn.Module, input_shape: tuple[int, int, int], batch: int) -> bytes:
    """Return ``model``, which may be quantized, as a .tflite, not compared with eager.

    Its input is (batch, C, H, W), of signed 8-bit integers where the network quantizes its input.

    Raises:
        AmcError: The model cannot be converted.
    """
    from amc.quantization.layers import is_quantized

    with conversion(model, input_shape, "convert to LiteRT"):
        import litert_torch

        network, settings = eval_on_cpu(model), None
        if is_quantized(network):
            from amc.quantization.written.explicit import for_integer_kernels

            network, settings = for_integer_kernels(network, twice=True).eval(), _as_written()
        images = random_batch(input_shape, batch)
        return bytes(litert_torch.convert(network, (images,), quant_config=settings).model_content())


def _as_written() -> Any:
    """Return settings that make the converter take the integers of the network, and choose none itself."""
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    static = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False)
    return QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(static))


def load(content: bytes, images: Any, threads: int) -> Callable[[], Any]:
    """Return one run of a .tflite on a (batch, C, H, W) float32 array, which returns the logits.

    The array is read, and turned into integers where the file takes those, in every call.
    """
    return _loaded(content, threads, lambda source: lambda: _as_stored(images, source))


def load_fixed(content: bytes, images: Any, threads: int) -> Callable[[], Any]:
    """Return a run as ``load`` does, on images that do not change: they are turned into integers once."""

    def given(source: Mapping[str, Any]) -> Callable[[], Any]:
        stored = _as_stored(images, source)
        return lambda: stored

    return _loaded(content, threads, given)


def _loaded(
    content: bytes, threads: int, given: Callable[[Mapping[str, Any]], Callable[[], Any]]
) -> Callable[[], Any]:
    """Return one run of a .tflite; ``given`` returns what gives the input that the file describes."""
    make = _interpreter_class()
    with quiet():
        interpreter = make(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]
    output = interpreter.get_output_details()[0]["index"]

    images = given(source)

    def run() -> Any:
        interpreter.set_tensor(source["index"], images())
        interpreter.invoke()
        return interpreter.get_tensor(output)

    return run


def _as_stored(images: Any, source: Mapping[str, Any]) -> Any:
    """Return images as a file takes them: integers on the grid that it states, or as they are."""
    import numpy as np

    if source["dtype"] != np.int8:
        return images
    scale, zero = source["quantization"]
    return np.clip(np.rint(images / np.float32(scale)) + zero, -128, 127).astype(np.int8)


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
    load_fixed=load_fixed,
    methods={
        "static_int8": "weights of layers with float outputs, mostly the last, stay float32 in the file"
    },
    kernels=with_xnnpack_sums,
)
