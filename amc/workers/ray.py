"""Workers as Ray actors, on this machine or on the nodes of a Ray cluster.

The nodes of a cluster need the same packages, including this one. The evaluator is sent to the object store
once, and the actors of a node share it. Ray itself reads the token of a cluster from the environment
variables ``RAY_AUTH_MODE`` and ``RAY_AUTH_TOKEN``.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray
import torch

from amc.errors import UnavailableError, first_line
from amc.workers.protocol import Answer, WorkerLost, attempt, set_up
from amc.workers.settings import WorkerSettings
from amc.workers.shared_memory import Payload, unpack


class RayBackend:
    """Starts actors of one CPU each.

    Args:
        payload: a packed evaluator.
        settings: number of actors, threads of each, address of the cluster.
        device: where candidates run; on GPUs, the actors share them evenly.

    Raises:
        UnavailableError: there is no cluster at the address, or it has too few CPUs.
    """

    def __init__(self, payload: Payload, settings: WorkerSettings, device: torch.device) -> None:
        self._mine = not ray.is_initialized()
        if self._mine:
            _connect(settings)
        cpus = ray.cluster_resources().get("CPU", 0)
        if cpus < settings.count:
            self.close()
            raise UnavailableError(f"{settings.count} workers need a CPU each; the Ray cluster has {cpus:g}")
        options = {"num_cpus": 1, "num_gpus": _gpu_share(settings.count) if device.type == "cuda" else 0}
        self._actor = ray.remote(_Actor).options(**options)
        self._threads, self._timeout = settings.threads, settings.timeout
        self._block = ray.put(payload.block.numpy())
        self._pickle_start = payload.pickle_start

    def start(self) -> RayWorker:
        """Start an actor without waiting for it."""
        return RayWorker(self._actor.remote(), self._block, self._pickle_start, self._threads, self._timeout)

    def close(self) -> None:
        """Disconnect from Ray, if this backend connected to it."""
        if self._mine:
            ray.shutdown()


class RayWorker:
    """One actor."""

    def __init__(self, actor: Any, block: Any, pickle_start: int, threads: int, timeout: float) -> None:
        self._actor, self._timeout = actor, timeout
        self._loaded = actor.load.remote(block, pickle_start, threads)

    def ready(self) -> None:
        """Wait until the evaluator is rebuilt.

        Raises:
            AmcError: it cannot be rebuilt.
            WorkerLost: the actor died, or gives no answer in time.
        """
        error = _result(self._loaded, self._timeout)
        if error is not None:
            raise error

    def evaluate(self, widths: Sequence[int]) -> Answer:
        """Wait for an evaluation.

        Raises:
            WorkerLost: the actor died, or gives no answer in time.
        """
        return _result(self._actor.evaluate.remote(tuple(widths)), self._timeout)

    def close(self) -> None:
        """End the actor."""
        ray.kill(self._actor)


class _Actor:
    def load(self, block: np.ndarray, pickle_start: int, threads: int) -> Exception | None:
        set_up(threads)
        self._evaluator = attempt(unpack, Payload(_read_only(block), pickle_start))
        return self._evaluator if isinstance(self._evaluator, Exception) else None

    def evaluate(self, widths: Sequence[int]) -> Answer:
        return attempt(self._evaluator.evaluate, widths)


def _read_only(block: np.ndarray) -> torch.Tensor:
    """Return memory of the object store, which is read-only, as a tensor."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(block)


def _result(reference: Any, timeout: float) -> Any:
    try:
        return ray.get(reference, timeout=timeout)
    except ray.exceptions.GetTimeoutError as error:
        raise WorkerLost(f"no answer within {timeout:g} s") from error
    except ray.exceptions.RayActorError as error:
        raise WorkerLost(first_line(error)) from error


def _connect(settings: WorkerSettings) -> None:
    """Connect to the cluster at the address or start Ray on this machine, without its log lines."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"address": settings.address}
    if settings.address is None:
        options = {"address": "local", "num_cpus": settings.count, "include_dashboard": False}
    elif settings.address != "auto":
        _check_reachable(settings.address)
    with _own_sigterm():
        try:
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = first_line(error)
            raise UnavailableError(f"Ray at address {settings.address} cannot be used: {reason}") from error


def _check_reachable(address: str) -> None:
    """Try to connect to HOST:PORT; Ray itself would keep trying for a quarter of an hour."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UnavailableError(
            f"Ray at address {address} cannot be reached: {error}; expected auto or HOST:PORT"
        ) from error


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the SIGTERM handler of this process, which Ray would replace."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _gpu_share(count: int) -> float:
    """Return the share of a GPU of each actor, at most 1, rounded down to the 4 digits that Ray accepts.

    Each actor's share lies on one GPU, so that the GPU with the most actors says how large it is.
    """
    gpus = int(ray.cluster_resources().get("GPU", 0))
    return int(1e4 / math.ceil(count / gpus)) / 1e4 if gpus else 0.0
