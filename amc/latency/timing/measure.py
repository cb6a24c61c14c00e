"""Timing that survives a shared machine: interleaved rounds, and speed-ups taken within each round.

The speed-up is the median over rounds of the ratio within a round: a slow spell hits both sides of the ratio.
A network is timed only once its logits on the runtime agree with eager PyTorch.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from amc.errors import AmcError
from amc.latency.portable.machine import clock_notes, cpu_model
from amc.latency.portable.rounds import interleaved
from amc.latency.remote.protocol import RemoteBackend
from amc.latency.timing.peak_memory import peak_memory
from amc.runtimes.checked import prepare_checked
from amc.runtimes.protocol import Backend, Clock, FileBackend, Shape

if TYPE_CHECKING:
    from torch import nn


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
class Measurement:
    """Named networks timed on one backend in the same rounds.

    Attributes:
        timings: By name.
        clock: ``process_time`` (CPU seconds, one thread), ``perf_counter`` (wall seconds), or another of the
            backend's own.
        device: What ran them.
        version: Version of the runtime.
        file_bytes: Size of the file that the runtime loads, by name; empty if it loads none.
        peak_memory_bytes: What a network takes at most, by name (``amc.latency.timing.peak_memory``, or
            device memory as the runtime tells it); empty where it is not known.
        notes: What is known of the device's clock rate and temperature, a line each.
    """

    timings: dict[str, Timing]
    clock: str
    device: str
    version: str
    file_bytes: dict[str, int]
    peak_memory_bytes: dict[str, int]
    notes: tuple[str, ...]


def measure(
    runs: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 30,
    warmup: int = 5,
    min_round_seconds: float = 0.02,
    clock: Clock = time.process_time,
) -> dict[str, Timing]:
    """Time every callable in each of ``rounds`` rounds, interleaved (``amc.latency.portable.rounds``).

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
    samples, repeats = interleaved(runs, rounds, warmup, min_round_seconds, clock)
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
        speedup_q1=quantile(ratios, 0.25),
        speedup_q3=quantile(ratios, 0.75),
    )


def time_models(
    models: Mapping[str, nn.Module],
    input_shape: Shape | Mapping[str, Shape],
    backend: Backend | RemoteBackend,
    *,
    batch: int = 1,
    threads: int = 1,
    rounds: int = 30,
) -> dict[str, Timing]:
    """Time any number of named models on one backend in the same rounds; any two can go to :func:`ratio`.

    ``input_shape`` is one image, (C, H, W), for all models or for each by name.

    Raises:
        AmcError: A model does not convert, or its logits on the backend are not those of eager PyTorch.
    """
    return measure_models(models, input_shape, backend, batch=batch, threads=threads, rounds=rounds).timings


def measure_models(
    models: Mapping[str, nn.Module],
    input_shape: Shape | Mapping[str, Shape],
    backend: Backend | RemoteBackend,
    *,
    batch: int = 1,
    threads: int = 1,
    rounds: int = 30,
    memory: bool = False,
) -> Measurement:
    """Do what :func:`time_models` does, and tell what else is known of the measurement.

    With ``memory`` a fresh process loads each file that runs on this machine's CPU, for its peak memory.
    """
    shapes = input_shape if isinstance(input_shape, Mapping) else dict.fromkeys(models, input_shape)
    if isinstance(backend, RemoteBackend):
        return _measured_there(backend, models, shapes, batch=batch, threads=threads, rounds=rounds)
    with torch_threads_restored():
        prepared = {
            name: prepare_checked(backend, model, shapes[name], batch, threads)
            for name, model in models.items()
        }
        one = next(iter(prepared.values()))
        clock_name, clock = one.clock or clock_for(threads)
        timings = measure({name: p.run for name, p in prepared.items()}, rounds=rounds, clock=clock)
    sizes = {name: len(p.content) for name, p in prepared.items() if p.content is not None}
    peaks = {name: p.peak_memory_bytes for name, p in prepared.items()}
    if memory and one.device is None and isinstance(backend, FileBackend):
        peaks = {
            name: peak_memory(backend, p.content, shapes[name], batch, threads)
            for name, p in prepared.items()
            if p.content is not None
        }
    return Measurement(
        timings=timings,
        clock=clock_name,
        device=one.device or cpu_model(),
        version=backend.version(),
        file_bytes=sizes,
        peak_memory_bytes={name: peak for name, peak in peaks.items() if peak is not None},
        notes=tuple(clock_notes()),
    )


def _measured_there(
    backend: RemoteBackend,
    models: Mapping[str, nn.Module],
    shapes: Mapping[str, Shape],
    *,
    batch: int,
    threads: int,
    rounds: int,
) -> Measurement:
    found = backend.times_ms(models, shapes, batch=batch, threads=threads, rounds=rounds)
    return Measurement(
        timings={name: _timing(found.samples_ms[name], found.repeats) for name in models},
        clock=found.clock,
        device=found.device,
        version=found.version,
        file_bytes=dict(found.file_bytes),
        peak_memory_bytes={},
        notes=found.notes,
    )


def clock_for(threads: int) -> tuple[str, Clock]:
    """Return the name and the function of the clock for a runtime that uses so many threads.

    CPU time adds up the threads of a process, so it stands for latency only while there is one of them.
    """
    return ("process_time", time.process_time) if threads == 1 else ("perf_counter", time.perf_counter)


def _timing(samples_ms: Sequence[float], repeats: int) -> Timing:
    return Timing(
        median_ms=median(samples_ms),
        p90_ms=quantile(samples_ms, 0.9),
        iqr_ms=quantile(samples_ms, 0.75) - quantile(samples_ms, 0.25),
        rounds=len(samples_ms),
        repeats=repeats,
        samples_ms=tuple(samples_ms),
    )


def quantile(values: Sequence[float], fraction: float) -> float:
    """Linearly interpolated quantile, as numpy's default."""
    ordered = sorted(values)
    position = fraction * (len(ordered) - 1)
    low, high = ordered[math.floor(position)], ordered[math.ceil(position)]
    return low if low == high else low + (high - low) * (position - math.floor(position))


@contextlib.contextmanager
def torch_threads_restored() -> Iterator[None]:
    """Give torch its number of threads back at the end."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
