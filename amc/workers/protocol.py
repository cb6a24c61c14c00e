"""The interface of workers and backends."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from amc.result import Evaluation
from amc.third_party import keep_free_memory

Answer = Evaluation | Exception
"""The result of an evaluation, or the exception that it raised in the worker."""


class WorkerLost(RuntimeError):  # noqa: N818 - an event, handled by the pool
    """A worker died; the message says how."""


class Worker(Protocol):
    """A process with a copy of the evaluator. It evaluates one candidate at a time, for any thread."""

    def ready(self) -> None:
        """Wait until the worker can evaluate.

        Raises:
            AmcError: it cannot rebuild the evaluator.
            WorkerLost: it died.
        """
        ...

    def evaluate(self, widths: Sequence[int]) -> Answer:
        """Wait for an evaluation.

        Args:
            widths: kept channels of every group.

        Raises:
            WorkerLost: the worker died and cannot be used any more.
        """
        ...

    def close(self) -> None:
        """End the worker, even in the middle of an evaluation; several threads may do so at once."""
        ...


class Backend(Protocol):
    """Starts workers of one kind."""

    def start(self) -> Worker:
        """Start a worker without waiting for it."""
        ...

    def close(self) -> None:
        """Free what the workers share; all workers are closed before."""
        ...


def set_up(threads: int) -> None:
    """Set the number of threads of a new worker, and keep its freed memory for the next layer.

    Its float32 is that of the process that it works for, without TF32.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(threads)
    keep_free_memory()


def attempt(work: Callable[[Any], Any], argument: Any) -> Any:
    """Return the result or the exception of ``work(argument)``; the exception has its traceback as a note."""
    try:
        return work(argument)
    except Exception as error:  # any kind: it is raised again in the asking process
        error.add_note("".join(["in a worker:\n", *traceback.format_tb(error.__traceback__)]))
        return error if _can_be_pickled(error) else RuntimeError(f"{type(error).__name__}: {error}")


def _can_be_pickled(error: Exception) -> bool:
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:  # an unknown exception class may do anything
        return False
