"""Many workers that look like one evaluator: known widths are remembered, others go to an idle worker."""

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
"""How often an evaluation whose worker was lost is run again."""

Log = Callable[[str], None]


def open_pool(evaluator: Evaluator[CandidateBuilder], settings: WorkerSettings, log: Log) -> WorkerPool:
    """Start workers for an evaluator and wait until they can evaluate.

    What all evaluations need is computed first, here and once. A network of minimal widths is built for the
    factorisations that it leaves behind: workers share them, too.

    Args:
        settings: of any kind but ``serial``.
        log: told in one line of every worker that was lost.

    Raises:
        AmcError: the network cannot be sent to workers, or they cannot be started.
    """
    evaluator.prepare()
    evaluator.builder.factorise()
    return WorkerPool(evaluator, _backend(evaluator, settings), settings.count, log)


def _backend(evaluator: Evaluator[CandidateBuilder], settings: WorkerSettings) -> Backend:
    if settings.kind == "ray":
        from amc.workers.ray import RayBackend

        return RayBackend(pack(evaluator.without_memory()), settings, evaluator.images.device)
    from amc.workers.process import ProcessBackend

    return ProcessBackend(pack(evaluator.without_memory()), settings.threads)


class WorkerPool:
    """Evaluates widths for any number of threads, as many at the same time as there are workers.

    A lost worker is replaced and its evaluation run again, ``RERUNS`` times at most; the others go on.
    The results do not depend on the number of workers, nor on which of them evaluates what.

    Args:
        evaluator: answers known widths and remembers new ones.
        backend: starts workers; closed with the pool.
        count: number of workers.
        log: told of every worker that was lost.

    Raises:
        AmcError: the workers cannot be started.
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
        # None is one to be started. Last in, first out: after a loss the next to be taken is a new one.
        self._idle: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        self._closed = False
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
        """Return what these widths achieve; known ones cost nothing, and none is evaluated twice.

        Raises:
            AmcError: the workers that evaluated these widths were lost again and again.
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
        """End the workers; evaluations in flight fail."""
        self._closed = True
        for worker in list(self._workers):
            self._dismiss(worker)
        self._backend.close()

    def _settle(self, widths: tuple[int, ...], future: Future[Evaluation]) -> None:
        """Run an evaluation and tell all who wait for it."""
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
            "is there too little memory for workers.count?"
        ) from reason

    def _attempt(self, widths: tuple[int, ...]) -> Answer:
        """Have one worker evaluate; one that did not answer is not used again."""
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
        worker = self._backend.start()
        self._workers.add(worker)
        return worker

    def _dismiss(self, worker: Worker) -> None:
        self._workers.discard(worker)
        worker.close()
