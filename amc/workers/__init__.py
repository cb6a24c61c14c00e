"""Evaluations of many candidates at the same time: worker processes, on this machine or in a Ray cluster."""

from amc.workers.pool import WorkerPool, open_pool
from amc.workers.protocol import KINDS, Answer, Backend, Worker, WorkerLost, WorkerSettings

__all__ = [
    "KINDS",
    "Answer",
    "Backend",
    "Worker",
    "WorkerLost",
    "WorkerPool",
    "WorkerSettings",
    "open_pool",
]
