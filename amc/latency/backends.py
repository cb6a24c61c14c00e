"""The runtimes that can be measured, by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from amc.errors import AmcError
from amc.latency.executorch import ExecuTorch
from amc.latency.litert import LiteRT
from amc.latency.onnxruntime import OnnxRuntime
from amc.latency.openvino import OpenVino
from amc.latency.protocol import Backend
from amc.latency.torch_eager import TorchEager

BACKENDS: dict[str, Callable[[], Backend]] = {
    "torch": TorchEager,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "executorch": ExecuTorch,
    "litert": LiteRT,
}
"""Constructors by name; add an entry to measure another runtime."""


def get_backend(name: str) -> Backend:
    """Construct the backend called ``name``.

    Raises:
        AmcError: No backend has that name.
    """
    if name not in BACKENDS:
        close = difflib.get_close_matches(name, BACKENDS)
        hint = f"; did you mean {' or '.join(close)}?" if close else "; likely a backend of another version"
        raise AmcError(
            f"unknown latency backend {name!r}, expected one of {', '.join(sorted(BACKENDS))}{hint}"
        )
    return BACKENDS[name]()
