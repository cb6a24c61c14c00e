"""What a kind of workers provides, and how many of which kind are asked for."""

from __future__ import annotations

import ctypes
import pickle
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import torch

from amc.result import Evaluation

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``."""

Answer = Evaluation | Exception
"""What became of an evaluation; the exception is one that it raised in the worker."""


class WorkerLost(RuntimeError):  # noqa: N818 - an event, handled by the pool
    """A worker died, whatever it was asked; the message says how."""


class Worker(Protocol):
    """A process that holds the evaluator; one evaluation at a time, from any one thread."""

    def ready(self) -> None:
        """Wait until the worker can evaluate.

        Raises:
            AmcError: it cannot rebuild the evaluator.
            WorkerLost: it died.
        """
        ...

    def evaluate(self, widths: Sequence[int]) -> Answer:
        """Wait for an evaluation.

        Raises:
            WorkerLost: the worker died; it is of no use any more.
        """
        ...

    def close(self) -> None:
        """End the worker, in the middle of its work if need be."""
        ...


class Backend(Protocol):
    """Where workers run."""

    def start(self) -> Worker:
        """Start a worker without waiting for it."""
        ...

    def close(self) -> None:
        """Give back what is not a worker's own; the workers are closed."""
        ...


def set_up(threads: int) -> None:
    """Set a fresh worker's threads, and have it keep freed memory for the next layer.

    glibc gives large freed blocks back to the system, unless it has learned not to: the process that
    calibrated has, a worker would get its memory anew, page by page, for every layer of every candidate.
    """
    torch.set_num_threads(threads)
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library than glibc
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the largest that is allowed
            mallopt(_M_TRIM_THRESHOLD, 2**30)


def attempt(work: Callable[[Any], Any], argument: Any) -> Any:
    """Return the result or the exception of ``work(argument)``; where it happened goes along as a note."""
    try:
        return work(argument)
    except Exception as error:  # any: it is raised again in the process that asked
        error.add_note("".join(["in a worker:\n", *traceback.format_tb(error.__traceback__)]))
        return error if _travels(error) else RuntimeError(f"{type(error).__name__}: {error}")


def _travels(error: Exception) -> bool:
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:  # an exception class of someone else may do anything
        return False
