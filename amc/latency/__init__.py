"""Latency of the dense and the pruned network on the same machine, per runtime, in interleaved rounds."""

from amc.latency.backends import BACKENDS, get_backend
from amc.latency.measure import BackendResult, Comparison, Timing, compare, measure, ratio, time_models
from amc.latency.predict import LatencyModel
from amc.latency.protocol import Backend

__all__ = [
    "BACKENDS",
    "Backend",
    "BackendResult",
    "Comparison",
    "LatencyModel",
    "Timing",
    "compare",
    "get_backend",
    "measure",
    "ratio",
    "time_models",
]
