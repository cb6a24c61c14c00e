"""Timing on a shared machine: interleaved rounds, and speed-ups taken within each round.

The speed-up is the median over rounds of the ratio within a round, because a slow spell hits both sides of
that ratio. A network is timed only once its logits on the runtime agree with eager PyTorch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amc.errors import AmcError, SettingError
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
        clock: ``process_time`` (CPU seconds, one thread), ``perf_counter`` (wall seconds), or a clock of the
            backend.
        device: Name of the device.
        version: Version of the runtime.
        file_bytes: Size of the file that the runtime loads, by name; empty if it loads none.
        peak_memory_bytes: Peak memory by name (``amc.latency.timing.peak_memory``, or the device memory that
            the runtime reports); empty where it is not known.
        notes: Facts about the device's clock rate and temperature, a line each.
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

    Raises:
        SettingError: There is no callable, or no round.
    """
    if not runs or rounds < 1:
        raise SettingError(
            f"got {len(runs)} callables and {rounds} rounds, expected at least one of each; "
            "likely an empty selection"
        )
    samples, repeats = interleaved(runs, rounds, warmup, min_round_seconds, clock)
    return {name: _timing(values, repeats) for name, values in samples.items()}


def ratio(dense: Timing, pruned: Timing) -> Comparison:
    """Compare two timings from the same call of :func:`measure`, round by round.

    Raises:
        SettingError: The numbers of rounds differ.
        AmcError: A round of the pruned network took no time.
    """
    if dense.rounds != pruned.rounds:
        raise SettingError(
            f"got {dense.rounds} dense and {pruned.rounds} pruned rounds, expected as many of each; "
            "likely two separate measurements, which cannot be paired"
        )
    if min(pruned.samples_ms) <= 0:
        raise AmcError("a round of the pruned network took 0 ms; likely the clock is too coarse")
    ratios = [d / p for d, p in zip(dense.samples_ms, pruned.samples_ms, strict=True)]
    first, middle, third = quantiles(ratios, 0.25, 0.5, 0.75)
    return Comparison(
        dense=dense,
        pruned=pruned,
        speedup=middle,
        speedup_q1=first,
        speedup_q3=third,
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

    Args:
        models: The networks, by name.
        input_shape: One image, (C, H, W), for all models or for each by name.
        backend: The runtime.
        batch: Images per call.
        threads: Threads the runtime may use.
        rounds: Samples per network.

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
    """Time models as :func:`time_models` does, and return all that is known about the measurement.

    With ``memory`` a fresh process loads each file that runs on this machine's CPU, for its peak memory.

    Raises:
        AmcError: A model does not convert, or its logits on the backend are not those of eager PyTorch.
    """
    shapes = input_shape if isinstance(input_shape, Mapping) else dict.fromkeys(models, input_shape)
    if isinstance(backend, RemoteBackend):
        return _measure_remotely(backend, models, shapes, batch=batch, threads=threads, rounds=rounds)
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


def _measure_remotely(
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
    """Return the name and the function of the clock for a runtime that uses ``threads`` threads.

    CPU time adds up the threads of a process, so it equals the latency only with one thread.
    """
    return ("process_time", time.process_time) if threads == 1 else ("perf_counter", time.perf_counter)


def _timing(samples_ms: Sequence[float], repeats: int) -> Timing:
    first, middle, third, p90 = quantiles(samples_ms, 0.25, 0.5, 0.75, 0.9)
    return Timing(
        median_ms=middle,
        p90_ms=p90,
        iqr_ms=third - first,
        rounds=len(samples_ms),
        repeats=repeats,
        samples_ms=tuple(samples_ms),
    )


def quantiles(values: Sequence[float], *fractions: float) -> list[float]:
    """Return the linearly interpolated quantiles of ``values`` at ``fractions``, 0 to 1."""
    import numpy as np  # here, so that importing the package stays light

    found: list[float] = np.quantile(values, fractions).tolist()
    return found


@contextlib.contextmanager
def torch_threads_restored() -> Iterator[None]:
    """Restore torch's number of threads at the end."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
