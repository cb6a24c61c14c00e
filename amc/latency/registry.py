"""The runtimes that can be measured, by name."""

from __future__ import annotations

from typing import Any

from amc.latency.remote.adb import Adb
from amc.latency.remote.protocol import RemoteBackend
from amc.latency.remote.ssh import Ssh
from amc.registry import Registry
from amc.runtimes.executorch import EXECUTORCH
from amc.runtimes.litert import LITERT
from amc.runtimes.onnxruntime import ONNXRUNTIME, on_nvidia
from amc.runtimes.openvino import OPENVINO
from amc.runtimes.protocol import Backend
from amc.runtimes.tensorrt import TensorRT
from amc.runtimes.torch_compile import TorchCompile
from amc.runtimes.torch_cuda import TorchCuda
from amc.runtimes.torch_eager import TorchEager


def _own_runtime(made: Any) -> Backend | RemoteBackend | None:
    """Return a user's own runtime, an object or its class; None if it is none."""
    found = made() if isinstance(made, type) else made
    return found if isinstance(found, RemoteBackend) or hasattr(found, "prepare") else None


BACKENDS: Registry[Backend | RemoteBackend] = Registry(
    "runtime",
    {
        backend.name: backend
        for backend in (
            TorchEager(),
            TorchCompile(),
            TorchCuda(),
            TorchCuda("torch_cuda_fp16", "float16"),
            TorchCuda("torch_cuda_graph", graph=True),
            TorchCuda("torch_cuda_graph_fp16", "float16", graph=True),
            ONNXRUNTIME,
            on_nvidia("onnxruntime_cuda", "CUDAExecutionProvider"),
            on_nvidia("onnxruntime_tensorrt", "TensorrtExecutionProvider"),
            OPENVINO,
            EXECUTORCH,
            LITERT,
            TensorRT(),
            Adb(),
            Ssh(),
        )
    },
    own=_own_runtime,
)
"""A new runtime is one file in ``amc.runtimes`` and one row here; a dotted path names one of the user's."""


def get_backend(name: str) -> Backend | RemoteBackend:
    """Return the backend called ``name``.

    Raises:
        SettingError: No backend has that name.
    """
    return BACKENDS.find(name)
