"""Latency of the dense and the pruned network on the same device, per runtime, in interleaved rounds."""

from amc.latency.comparison import BackendResult, compare
from amc.latency.registry import BACKENDS, get_backend
from amc.latency.remote.protocol import RemoteBackend, RemoteTimes
from amc.latency.timing.measure import (
    Comparison,
    Measurement,
    Timing,
    measure,
    measure_models,
    ratio,
    time_models,
)
from amc.runtimes.protocol import Backend, FileBackend, Prepared

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
