"""The runtimes that can be measured, by name."""

from __future__ import annotations

from collections.abc import Callable

from amc.latency.remote.adb import Adb
from amc.latency.remote.protocol import RemoteBackend
from amc.latency.remote.ssh import Ssh
from amc.registry import Registry
from amc.runtimes.executorch import ExecuTorch
from amc.runtimes.litert import LiteRT
from amc.runtimes.onnxruntime import OnnxRuntime
from amc.runtimes.openvino import OpenVino
from amc.runtimes.protocol import Backend
from amc.runtimes.tensorrt import TensorRT
from amc.runtimes.torch_compile import TorchCompile
from amc.runtimes.torch_cuda import TorchCuda
from amc.runtimes.torch_eager import TorchEager

BACKENDS: Registry[Callable[[], Backend | RemoteBackend]] = Registry(
    "runtime",
    {
        "torch": TorchEager,
        "torch_compile": TorchCompile,
        "torch_cuda": TorchCuda,
        "torch_cuda_fp16": lambda: TorchCuda("torch_cuda_fp16", "float16"),
        "torch_cuda_graph": lambda: TorchCuda("torch_cuda_graph", graph=True),
        "torch_cuda_graph_fp16": lambda: TorchCuda("torch_cuda_graph_fp16", "float16", graph=True),
        "onnxruntime": OnnxRuntime,
        "onnxruntime_cuda": lambda: OnnxRuntime("onnxruntime_cuda", provider="CUDAExecutionProvider"),
        "onnxruntime_tensorrt": lambda: OnnxRuntime(
            "onnxruntime_tensorrt", provider="TensorrtExecutionProvider"
        ),
        "openvino": OpenVino,
        "executorch": ExecuTorch,
        "litert": LiteRT,
        "tensorrt": TensorRT,
        "adb": Adb,
        "ssh": Ssh,
    },
)
"""Constructors by name; add an entry to measure another runtime."""


def get_backend(name: str) -> Backend | RemoteBackend:
    """Construct the backend called ``name``.

    Raises:
        SettingError: No backend has that name.
    """
    return BACKENDS.find(name)()
