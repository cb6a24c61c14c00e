"""OpenVINO's CPU device: an ONNX file, compiled for one batch size in float32, one stream."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from amc.runtimes.onnx_file import ONNX_PACKAGES, onnx_bytes
from amc.runtimes.protocol import FileRuntime
from amc.third_party import without


def load(source: bytes | Path, images: Any, threads: int) -> Callable[[], Any]:
    """Return one run on a (batch, C, H, W) float32 array, which returns the logits.

    Args:
        source: The content of an ONNX file, or the path of any file that OpenVINO reads.
        images: The input; the network is compiled for its shape.
        threads: Threads of the CPU device.
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

    The end of the last Core unloads its plugins. Callbacks that stay registered crash the next fork.
    """
    return openvino_module().Core()


def openvino_module() -> Any:
    """Import OpenVINO without ``openvino_telemetry``, which reports the import to Intel over the network.

    OpenVINO has a stub for machines where that package is not installed.
    """
    with without("openvino_telemetry"):
        import openvino
    return openvino


OPENVINO = FileRuntime(
    name="openvino",
    packages=("openvino", *ONNX_PACKAGES),
    version=lambda: str(openvino_module().__version__),
    runtime=openvino_module,
    convert=onnx_bytes,
    load=load,
    methods={
        "static_int8": "",
        "dynamic_int8": "convolutions with ranges measured at run time are slower than float ones",
        "weight_only": "weights become float32 when the file is loaded: it is smaller, a call as fast",
        "fp16": "it computes in float32 by default: the file is smaller, a call as fast",
    },
)
