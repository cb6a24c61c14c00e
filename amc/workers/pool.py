"""Many workers behind the interface of one evaluator: they evaluate the widths that it does not remember."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from amc.errors import AmcError
from amc.result import Evaluation
from amc.workers.protocol import Answer, Backend, Worker, WorkerLost
from amc.workers.settings import WorkerSettings
from amc.workers.shared_memory import pack

if TYPE_CHECKING:
    from amc.candidate.builder import CandidateBuilder
    from amc.candidate.evaluator import Evaluator

RERUNS = 3
"""How often an evaluation is repeated after the loss of its worker."""

Log = Callable[[str], None]
"""Takes one line of text."""


def open_pool(evaluator: Evaluator[CandidateBuilder], settings: WorkerSettings, log: Log) -> WorkerPool:
    """Start workers for an evaluator and wait until they can evaluate.

    Everything that all evaluations need is computed first, once and in this process. A network of minimal
    widths is built for the factorisations that this stores, so that workers share them as well.

    Args:
        evaluator: the evaluator that the workers copy.
        settings: of any kind but ``serial``.
        log: called with one line for every lost worker.

    Raises:
        UnavailableError: the Ray cluster cannot be reached or is too small.
        AmcError: the network cannot be sent to workers, or a worker died at its start.
    """
    evaluator.prepare()
    evaluator.builder.factorise()
    return WorkerPool(evaluator, _backend(evaluator, settings), settings.count, log)


def _backend(evaluator: Evaluator[CandidateBuilder], settings: WorkerSettings) -> Backend:
    if settings.kind == "ray":
        from amc.workers.ray import RayBackend

        return RayBackend(pack(evaluator.without_memory()), settings, evaluator.images.device)
    from amc.workers.process import ProcessBackend

    return ProcessBackend(pack(evaluator.without_memory()), settings.threads, settings.timeout)


class WorkerPool:
    """Evaluates widths for any number of threads, one candidate per worker at a time.

    A lost worker is replaced and its evaluation is run again, at most ``RERUNS`` times; the other workers
    continue. The results depend neither on the number of workers nor on which worker evaluates which widths.

    Args:
        evaluator: remembers results and looks them up.
        backend: starts workers; it is closed with the pool.
        count: number of workers.
        log: called with one line for every lost worker.

    Raises:
        AmcError: a worker died at its start, or cannot rebuild the evaluator.
    """

    def __init__(
        self, evaluator: Evaluator[CandidateBuilder], backend: Backend, count: int, log: Log
    ) -> None:
        self.macs = evaluator.macs
        self._evaluator = evaluator
        self._backend = backend
        self._log = log
        self._lock = threading.Lock()
        self._pending: dict[tuple[int, ...], Future[Evaluation]] = {}
        self._workers: set[Worker] = set()
        # None stands for a worker not started yet. A LIFO queue makes the retry after a loss run on a new
        # worker.
        self._idle: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        self._closed = False
        self._hiring = threading.Lock()
        try:
            self._start(count)
        except BaseException:
            self.close()
            raise

    def _start(self, count: int) -> None:
        workers = [self._hire() for _ in range(count)]
        try:
            for worker in workers:
                worker.ready()
                self._idle.put(worker)
        except WorkerLost as lost:
            raise AmcError(f"a worker died at its start ({lost}); is there memory for {count}?") from lost

    def evaluate(self, widths: Sequence[int]) -> Evaluation:
        """Return the evaluation of a candidate; no widths are evaluated twice.

        Args:
            widths: kept channels of every group.

        Raises:
            AmcError: all workers that evaluated these widths were lost, or the pool was closed.
        """
        key = tuple(int(width) for width in widths)
        with self._lock:
            known = self._evaluator.known(key)
            if known is not None:
                return known
            future = self._pending.get(key)
            mine = future is None
            if future is None:
                future = self._pending[key] = Future()
        if mine:
            self._settle(key, future)
        return future.result()

    def close(self) -> None:
        """End the workers; running evaluations fail."""
        with self._hiring:
            self._closed = True
        for worker in list(self._workers):
            self._dismiss(worker)
        self._backend.close()

    def _settle(self, widths: tuple[int, ...], future: Future[Evaluation]) -> None:
        """Run an evaluation and set its result for all waiting threads."""
        try:
            evaluation = self._evaluate(widths)
            with self._lock:
                self._evaluator.remember(evaluation)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(evaluation)
        finally:
            with self._lock:
                del self._pending[widths]

    def _evaluate(self, widths: tuple[int, ...]) -> Evaluation:
        for left in reversed(range(1 + RERUNS)):
            try:
                answer = self._attempt(widths)
            except WorkerLost as lost:
                if self._closed:
                    raise AmcError("the workers were closed during an evaluation") from lost
                again = "its evaluation is run again" if left else "its evaluation is given up"
                self._log(f"a worker was lost ({lost}); {again}")
                reason = lost
                continue
            if isinstance(answer, Exception):
                raise answer
            return answer
        raise AmcError(
            f"{1 + RERUNS} workers were lost while they evaluated {list(widths)}, the last one ({reason}); "
            "is there too little memory for this number of workers?"
        ) from reason

    def _attempt(self, widths: tuple[int, ...]) -> Answer:
        """Evaluate on one worker; it is not used again if it did not answer."""
        if self._closed:
            raise WorkerLost("closed")
        worker = self._idle.get()
        answered = False
        try:
            if worker is None:
                worker = self._hire()
                worker.ready()
            answer = worker.evaluate(widths)
            answered = True
            return answer
        finally:
            if not answered and worker is not None:
                self._dismiss(worker)
            self._idle.put(worker if answered else None)

    def _hire(self) -> Worker:
        with self._hiring:
            if self._closed:  # by another thread, which has ended the workers that it knew
                raise WorkerLost("closed")
            worker = self._backend.start()
            self._workers.add(worker)
        return worker

    def _dismiss(self, worker: Worker) -> None:
        self._workers.discard(worker)
        worker.close()
