"""Timing that survives a shared machine: interleaved rounds, and speed-ups taken within each round.

Two networks timed one after the other see different neighbours, clock rates and cache pressure. Here each
round times every network, in an order that alternates from round to round, and the speed-up is the median
over rounds of the ratio within a round: a slow spell hits both sides of the ratio.
"""

from __future__ import annotations

import contextlib
import gc
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from amc.errors import AmcError
from amc.latency.backends import get_backend
from amc.latency.protocol import Backend

if TYPE_CHECKING:
    from torch import nn

Clock = Callable[[], float]
"""Seconds since any fixed instant, like ``time.process_time``."""

Shape = tuple[int, int, int]
"""One image: channels, height, width."""

_MAX_REPEATS = 1_000_000


@dataclass(frozen=True)
class Timing:
    """Time of one call over many rounds.

    Attributes:
        median_ms: Median over rounds, milliseconds per call.
        p90_ms: 90th percentile over rounds, milliseconds per call.
        iqr_ms: Distance between the quartiles over rounds, milliseconds per call.
        rounds: Number of rounds.
        repeats: Calls per round, averaged over.
        samples_ms: The rounds in order, milliseconds per call.
    """

    median_ms: float
    p90_ms: float
    iqr_ms: float
    rounds: int
    repeats: int
    samples_ms: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """A dense and a pruned network timed in the same rounds.

    Attributes:
        dense: Timing of the dense network.
        pruned: Timing of the pruned network.
        speedup: Median over rounds of dense time / pruned time.
        speedup_q1: First quartile of the same.
        speedup_q3: Third quartile of the same.
    """

    dense: Timing
    pruned: Timing
    speedup: float
    speedup_q1: float
    speedup_q3: float


@dataclass(frozen=True)
class BackendResult:
    """One runtime's comparison, or why there is none.

    Attributes:
        backend: Name of the runtime.
        precision: Number format, such as ``float32``.
        input_shape: One image, (C, H, W).
        batch: Images per call.
        threads: Threads the runtime may use.
        clock: ``process_time`` (CPU seconds, one thread) or ``perf_counter`` (wall seconds, several threads).
        device: Model of the CPU.
        version: Version of the runtime; None if unavailable.
        comparison: The measurement; None if unavailable.
        unavailable: Why the runtime could not be measured; None if it was.
    """

    backend: str
    precision: str
    input_shape: tuple[int, int, int]
    batch: int
    threads: int
    clock: str
    device: str
    version: str | None = None
    comparison: Comparison | None = None
    unavailable: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as nested dictionaries that ``json.dump`` accepts."""
        return asdict(self)


def measure(
    runs: Mapping[str, Callable[[], None]],
    *,
    rounds: int = 30,
    warmup: int = 5,
    min_round_seconds: float = 0.02,
    clock: Clock = time.process_time,
) -> dict[str, Timing]:
    """Time every callable in each of ``rounds`` rounds, forwards in even rounds and backwards in odd ones.

    Within a round each callable is called the same number of times in a row; that number is calibrated once
    so that the slowest one takes at least ``min_round_seconds``. The garbage collector rests meanwhile.

    Args:
        runs: The callables, by name.
        rounds: Samples per callable.
        warmup: Calls of each callable that are not timed.
        min_round_seconds: Shortest share of a round for the slowest callable, by ``clock``.
        clock: CPU seconds of the process by default, which other users of the machine do not inflate. It adds
            up all threads of the process: for a callable that runs on several, pass ``time.perf_counter``.

    Returns:
        A timing per name, in the order of ``runs``.
    """
    if not runs or rounds < 1:
        raise AmcError(
            f"got {len(runs)} callables and {rounds} rounds, expected at least one of each; "
            "likely an empty selection"
        )
    for run in runs.values():
        _repeat(run, warmup)
    samples: dict[str, list[float]] = {name: [] for name in runs}
    with _no_garbage_collection():
        repeats = _calibrate(list(runs.values()), min_round_seconds, clock)
        for index in range(rounds):
            for name in list(runs)[:: -1 if index % 2 else 1]:
                samples[name].append(_seconds(runs[name], repeats, clock) * 1e3 / repeats)
    return {name: _timing(values, repeats) for name, values in samples.items()}


def ratio(dense: Timing, pruned: Timing) -> Comparison:
    """Compare two timings from the same call of :func:`measure`, round by round."""
    if dense.rounds != pruned.rounds:
        raise AmcError(
            f"got {dense.rounds} dense and {pruned.rounds} pruned rounds, expected as many of each; "
            "likely two separate measurements, which cannot be paired"
        )
    ratios = [d / p if p > 0 else math.inf for d, p in zip(dense.samples_ms, pruned.samples_ms, strict=True)]
    return Comparison(
        dense=dense,
        pruned=pruned,
        speedup=median(ratios),
        speedup_q1=_quantile(ratios, 0.25),
        speedup_q3=_quantile(ratios, 0.75),
    )


def time_models(
    models: Mapping[str, nn.Module],
    input_shape: Shape | Mapping[str, Shape],
    backend: Backend,
    *,
    batch: int = 1,
    threads: int = 1,
    rounds: int = 30,
) -> dict[str, Timing]:
    """Time any number of named models on one backend in the same rounds; any two can go to :func:`ratio`.

    ``input_shape`` is one image, (C, H, W), for all models or for each by name. The clock is the one that
    :func:`clock_for` gives.
    """
    shapes = input_shape if isinstance(input_shape, Mapping) else dict.fromkeys(models, input_shape)
    with _torch_threads_restored():
        runs = {name: backend.prepare(model, shapes[name], batch, threads) for name, model in models.items()}
        return measure(runs, rounds=rounds, clock=clock_for(threads)[1])


def compare(
    dense_model: nn.Module,
    pruned_model: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    backends: Sequence[str] = ("torch", "onnxruntime"),
    batch: int = 1,
    threads: int = 1,
    rounds: int = 30,
    progress: Callable[[str], None] | None = None,
) -> list[BackendResult]:
    """Measure the dense against the pruned network on each backend.

    Args:
        dense_model: The network before pruning.
        pruned_model: The network after pruning.
        input_shape: One image, (C, H, W), the same for both.
        backends: Names in ``BACKENDS``.
        batch: Images per call.
        threads: Threads a runtime may use.
        rounds: Interleaved rounds per backend.
        progress: Called with each backend's name before its turn.

    Returns:
        A result per backend, in order; a backend that does not run here gives its reason instead of numbers.

    Raises:
        AmcError: A backend is unknown (checked before the first measurement), a count is below 1, or a
            model does not convert.
    """
    if batch < 1 or threads < 1:
        raise AmcError(f"got batch {batch} and {threads} threads, expected at least 1 of each; likely a typo")
    models = {"dense": dense_model, "pruned": pruned_model}
    results = []
    for backend in [get_backend(name) for name in backends]:
        if progress is not None:
            progress(backend.name)
        unavailable = backend.available()
        comparison = None
        if unavailable is None:
            timings = time_models(models, input_shape, backend, batch=batch, threads=threads, rounds=rounds)
            comparison = ratio(timings["dense"], timings["pruned"])
        result = BackendResult(
            backend=backend.name,
            precision=backend.precision,
            input_shape=input_shape,
            batch=batch,
            threads=threads,
            clock=clock_for(threads)[0],
            device=cpu_model(),
            version=None if unavailable else backend.version(),
            comparison=comparison,
            unavailable=unavailable,
        )
        results.append(result)
    return results


def clock_for(threads: int) -> tuple[str, Clock]:
    """Return the name and the function of the clock for a runtime that uses so many threads.

    CPU time adds up the threads of a process, so it stands for latency only while there is one of them.
    """
    return ("process_time", time.process_time) if threads == 1 else ("perf_counter", time.perf_counter)


def cpu_model() -> str:
    """Return the CPU's marketing name where Linux tells it, else what ``platform`` knows."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _repeat(run: Callable[[], None], times: int) -> None:
    for _ in range(times):
        run()


def _seconds(run: Callable[[], None], repeats: int, clock: Clock) -> float:
    start = clock()
    _repeat(run, repeats)
    return clock() - start


def _calibrate(runs: Sequence[Callable[[], None]], min_seconds: float, clock: Clock) -> int:
    """Smallest tried number of calls for which the slowest of ``runs`` takes ``min_seconds``."""
    repeats = 1
    while repeats < _MAX_REPEATS:
        slowest = max(_seconds(run, repeats, clock) for run in runs)
        if slowest >= min_seconds:
            break
        wanted = math.ceil(1.1 * repeats * min_seconds / slowest) if slowest > 0 else 10 * repeats
        repeats = min(max(wanted, repeats + 1), 10 * repeats)
    return min(repeats, _MAX_REPEATS)


def _timing(samples_ms: Sequence[float], repeats: int) -> Timing:
    return Timing(
        median_ms=median(samples_ms),
        p90_ms=_quantile(samples_ms, 0.9),
        iqr_ms=_quantile(samples_ms, 0.75) - _quantile(samples_ms, 0.25),
        rounds=len(samples_ms),
        repeats=repeats,
        samples_ms=tuple(samples_ms),
    )


def _quantile(values: Sequence[float], fraction: float) -> float:
    """Linearly interpolated quantile, as numpy's default."""
    ordered = sorted(values)
    position = fraction * (len(ordered) - 1)
    low, high = ordered[math.floor(position)], ordered[math.ceil(position)]
    return low if low == high else low + (high - low) * (position - math.floor(position))


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def _torch_threads_restored() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
