"""ONNX Runtime on the CPU, and its providers for NVIDIA devices: float32, all graph optimisations."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import Any

from amc.errors import UnavailableError
from amc.runtimes.onnx_file import ONNX_PACKAGES, onnx_bytes
from amc.runtimes.onnx_session import open_session
from amc.runtimes.protocol import FileRuntime

_CPU = "CPUExecutionProvider"


def load(content: bytes, images: Any, threads: int, provider: str = _CPU) -> Callable[[], Any]:
    """Return one run of an ONNX file on a (batch, C, H, W) float32 array, which returns the logits.

    Args:
        content: The ONNX file.
        images: The input.
        threads: Threads of an operator.
        provider: The part of onnxruntime that runs the graph.

    Raises:
        UnavailableError: onnxruntime cannot start the provider.
    """
    session = open_session(onnxruntime_module(), content, threads, provider)
    if (used := session.get_providers()[0]) != provider:
        raise UnavailableError(
            f"{provider}: onnxruntime fell back to {used}; "
            "likely the CUDA or TensorRT libraries that it was built for are missing"
        )
    name = session.get_inputs()[0].name

    def run() -> Any:
        return session.run(None, {name: images})[0]

    return run


def onnxruntime_module() -> Any:
    """Import onnxruntime; it does not report to its maker unless ``ORT_DISABLE_TELEMETRY`` is set to 0."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def on_nvidia(name: str, provider: str) -> FileRuntime:
    """Return the runtime of a provider for NVIDIA devices.

    A call copies the images to the device and the logits back, as in production, and is timed by the wall
    clock.
    """
    return FileRuntime(
        name=name,
        packages=ONNXRUNTIME.packages,
        version=ONNXRUNTIME.version,
        runtime=onnxruntime_module,
        convert=onnx_bytes,
        load=functools.partial(load, provider=provider),
        lacking=functools.partial(_lacking, provider),
        clock=("perf_counter", time.perf_counter),
        device=_device,
    )


def _lacking(provider: str) -> str | None:
    if provider in onnxruntime_module().get_available_providers():
        return None
    return f"onnxruntime has no {provider} here (it comes with onnxruntime-gpu)"


def _device() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


ONNXRUNTIME = FileRuntime(
    name="onnxruntime",
    packages=("onnxruntime", *ONNX_PACKAGES),
    version=lambda: str(onnxruntime_module().__version__),
    runtime=onnxruntime_module,
    convert=onnx_bytes,
    load=load,
    methods={
        "static_int8": "",
        "dynamic_int8": "integer convolutions, with ranges measured at run time, are slower than float ones",
        "weight_only": "weights become float32 in every call: the file is smaller, a call is slower",
        "fp16": "it computes in float32 on this processor: the file is smaller, a call as fast",
    },
)
