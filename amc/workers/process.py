"""Workers as processes of this machine, one pipe each.

``ProcessPoolExecutor`` would not do: when one of its processes dies, it ends the others and fails their work.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

import torch

from amc.workers.protocol import Answer, WorkerLost, attempt, set_up
from amc.workers.shared_memory import Payload, unpack

_PR_SET_PDEATHSIG = 1


class ProcessBackend:
    """Starts processes that share the payload's memory.

    Args:
        payload: a packed evaluator.
        threads: number of threads of each process.
        timeout: seconds after which a process that gives no answer counts as lost.
    """

    def __init__(self, payload: Payload, threads: int, timeout: float = 3600.0) -> None:
        self._payload = payload
        self._threads = threads
        self._timeout = timeout
        # Linux ends a worker with the thread that started it, so that this one must live as long as they do.
        self._starter = ThreadPoolExecutor(1)

    def start(self) -> ProcessWorker:
        """Start a process without waiting for it."""
        starting = self._starter.submit(ProcessWorker, self._payload, self._threads, self._timeout)
        return starting.result()

    def close(self) -> None:
        """End the thread that has started the workers; the shared memory is freed with the payload."""
        self._starter.shutdown()


class ProcessWorker:
    """One process, which ends when this process ends for any reason, on Linux even if it hangs."""

    def __init__(self, payload: Payload, threads: int, timeout: float = 3600.0) -> None:
        self._timeout = timeout
        context = torch.multiprocessing.get_context(
            "spawn"
        )  # a fork would copy locks that other threads hold
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, payload, threads), daemon=True)
        with _ignoring_ctrl_c():
            self._process.start()
        theirs.close()  # so that the pipe is closed when the process ends
        self._talking = threading.Lock()

    def ready(self) -> None:
        """Wait until the evaluator is rebuilt.

        Raises:
            AmcError: it cannot be rebuilt.
            WorkerLost: the process died or hangs.
        """
        with self._talking:
            error = self._receive()
        if error is not None:
            raise error

    def evaluate(self, widths: Sequence[int]) -> Answer:
        """Wait for an evaluation.

        Raises:
            WorkerLost: the process died, or gave no answer in time.
        """
        with self._talking:
            try:
                self._connection.send(tuple(widths))
            except OSError as error:
                raise WorkerLost(self._fate()) from error
            return self._receive()

    def close(self) -> None:
        """End the process and wait until it is gone; several threads may do so."""
        self._process.terminate()
        self._process.join(5)
        self._process.kill()
        self._process.join()
        with self._talking:  # a thread that waits for an answer learns of the end, and then lets go
            self._connection.close()

    def _receive(self) -> Any:
        try:
            if not self._connection.poll(self._timeout):
                raise WorkerLost(f"process {self._process.pid}, no answer within {self._timeout:g} s")
            return self._connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerLost(self._fate()) from error

    def _fate(self) -> str:
        self._process.join(5)
        return f"process {self._process.pid}, exit code {self._process.exitcode}"


@contextmanager
def _ignoring_ctrl_c() -> Iterator[None]:
    """Start processes that never receive Ctrl-C, which a terminal sends to the whole process group."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # starting it later would lift the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, payload: Payload, threads: int) -> None:
    """Evaluate widths from the pipe until it is closed; the first message is None, or why it cannot start."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    set_up(threads)
    evaluator = attempt(unpack, payload)
    failed = isinstance(evaluator, Exception)
    with suppress(EOFError, OSError):
        connection.send(evaluator if failed else None)
        while not failed:
            connection.send(attempt(evaluator.evaluate, connection.recv()))


def _die_with_parent() -> None:
    """Have Linux kill this process when its parent dies: a stopped process cannot see to it itself."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library than glibc
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
