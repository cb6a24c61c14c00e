"""Latency of the dense and the pruned network on the same device, per runtime, in interleaved rounds."""

from amc.latency.backends import BACKENDS, get_backend
from amc.latency.measure import (
    BackendResult,
    Comparison,
    Measurement,
    Timing,
    compare,
    measure,
    measure_models,
    ratio,
    time_models,
)
from amc.latency.protocol import Backend, FileBackend, Prepared, RemoteBackend, RemoteTimes

__all__ = [
    "BACKENDS",
    "Backend",
    "BackendResult",
    "Comparison",
    "FileBackend",
    "Measurement",
    "Prepared",
    "RemoteBackend",
    "RemoteTimes",
    "Timing",
    "compare",
    "get_backend",
    "measure",
    "measure_models",
    "ratio",
    "time_models",
]
