"""Dense and pruned network under the same fixed load: utilisation of the machine, and latency of requests.

The load is an open loop: request number i of a slice is due i / rate seconds after the start of the slice,
whether or not the requests before it are done. Its latency counts from that moment. One server takes the
requests one after the other and sleeps while there is none. The networks take turns, slice by slice, so that
a slow spell hits both.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amc.errors import SettingError
from amc.latency.timing.measure import measure, quantiles, torch_threads_restored
from amc.runtimes.checked import prepare_checked
from amc.runtimes.protocol import Backend, Shape

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ServeSettings:
    """The load.

    Attributes:
        rate: Requests per second; half of the first network's capacity if None.
        seconds: Length of the load on each network, all slices together, up to half a request; at least one
            request is served.
        slices: Number of parts that the load is split into; at most one a request.
        deadline_ms: A request that takes longer counts as missed; the time between two requests if None.

    Raises:
        SettingError: A number is not positive.
    """

    rate: float | None = None
    seconds: float = 10.0
    slices: int = 10
    deadline_ms: float | None = None

    def __post_init__(self) -> None:
        for name in ("rate", "seconds", "slices", "deadline_ms"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise SettingError(f"serve.{name} is {value}; expected a positive number")


@dataclass(frozen=True)
class Served:
    """The result of one network under the load.

    Attributes:
        requests: Number of requests served, which is that of all requests due.
        p50_ms: Median latency, from the due time of a request to its logits, waiting included.
        p90_ms: 90th percentile of the latency.
        p99_ms: 99th percentile of the latency.
        missed: Requests that took longer than the deadline.
        cpu_utilisation: CPU seconds of the process per second, all threads: 1 is one core that never rests.
        gpu_utilisation: Share of the time in which the GPU was busy, as its driver reports at the end of
            each slice; None if the runtime uses no GPU, or the driver does not report it.
    """

    requests: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    missed: int
    cpu_utilisation: float
    gpu_utilisation: float | None


@dataclass(frozen=True)
class Clocks:
    """Sources of time.

    Attributes:
        wall: Seconds since any fixed instant.
        cpu: CPU seconds of the process.
        sleep: Waits for some seconds.
        gpu: Share of the last moments in which the GPU was busy; None if it is not known.
    """

    wall: Callable[[], float] = time.perf_counter
    cpu: Callable[[], float] = time.process_time
    sleep: Callable[[float], None] = time.sleep
    gpu: Callable[[], float] | None = None


@dataclass(frozen=True)
class ServeResult:
    """The networks under one load.

    Attributes:
        rate: Requests per second.
        deadline_ms: A request that takes longer counts as missed.
        served: The result of each network, by name.
    """

    rate: float
    deadline_ms: float
    served: dict[str, Served]


def serve_models(
    models: Mapping[str, nn.Module],
    input_shape: Shape,
    backend: Backend,
    settings: ServeSettings,
    *,
    batch: int = 1,
    threads: int = 1,
) -> ServeResult:
    """Serve requests of ``batch`` images with each model on a backend of this process.

    Raises:
        AmcError: A model does not convert, or its logits differ from those of eager PyTorch.
    """
    with torch_threads_restored():
        prepared = {
            name: prepare_checked(backend, model, input_shape, batch, threads)
            for name, model in models.items()
        }
        runs = {name: _with_logits(each.run) for name, each in prepared.items()}
        on_gpu = any(each.device is not None for each in prepared.values())
        return serve(runs, settings, Clocks(gpu=_gpu_meter() if on_gpu else None))


def serve(
    runs: Mapping[str, Callable[[], Any]], settings: ServeSettings, clocks: Clocks | None = None
) -> ServeResult:
    """Serve with callables, each of which answers one request; see :func:`serve_models`.

    Raises:
        SettingError: There is neither a rate nor a callable to derive it from.
    """
    clocks = clocks or Clocks()
    rate = settings.rate
    if rate is None:
        dense = next(iter(measure(runs, rounds=5, clock=clocks.wall).values()))
        rate = 500.0 / dense.median_ms
    requests = _shared_out(max(1, round(rate * settings.seconds)), settings.slices)
    deadline_ms = settings.deadline_ms or 1e3 / rate
    slices: dict[str, list[_Slice]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for index, due in enumerate(requests):
        for name in list(runs)[:: -1 if index % 2 else 1]:
            slices[name].append(_serve_slice(runs[name], rate, due, clocks))
    served = {name: _summary(parts, deadline_ms) for name, parts in slices.items()}
    return ServeResult(rate, deadline_ms, served)


def _shared_out(requests: int, slices: int) -> list[int]:
    """Return the requests of each slice, equally many up to one; no slice is empty."""
    count = min(slices, requests)
    return [requests // count + (index < requests % count) for index in range(count)]


@dataclass(frozen=True)
class _Slice:
    latencies_ms: list[float]
    wall: float
    cpu: float
    gpu: float | None


def _serve_slice(run: Callable[[], Any], rate: float, requests: int, clocks: Clocks) -> _Slice:
    latencies = []
    start, cpu = clocks.wall(), clocks.cpu()
    for index in range(requests):
        due = start + index / rate
        _sleep_until(due, clocks)
        run()
        latencies.append((clocks.wall() - due) * 1e3)
    gpu = clocks.gpu() if clocks.gpu else None
    _sleep_until(start + requests / rate, clocks)
    return _Slice(latencies, clocks.wall() - start, clocks.cpu() - cpu, gpu)


def _sleep_until(instant: float, clocks: Clocks) -> None:
    if (rest := instant - clocks.wall()) > 0:
        clocks.sleep(rest)


def _summary(slices: list[_Slice], deadline_ms: float) -> Served:
    latencies = [latency for part in slices for latency in part.latencies_ms]
    gpu = [part.gpu for part in slices if part.gpu is not None]
    p50, p90, p99 = quantiles(latencies, 0.5, 0.9, 0.99)
    return Served(
        requests=len(latencies),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        missed=sum(latency > deadline_ms for latency in latencies),
        cpu_utilisation=sum(part.cpu for part in slices) / sum(part.wall for part in slices),
        gpu_utilisation=sum(gpu) / len(gpu) if gpu else None,
    )


def _with_logits(run: Callable[[], Any]) -> Callable[[], Any]:
    """Return a run that ends with the logits in this machine's memory, which waits for a GPU."""

    def answer() -> Any:
        logits = run()
        return logits.cpu() if hasattr(logits, "cpu") else logits

    return answer


def _gpu_meter() -> Callable[[], float] | None:
    """Return a function that reads the GPU's utilisation, 0 to 1; None if nvidia-ml-py is not installed."""
    import torch

    try:
        torch.cuda.utilization()
    except (ImportError, RuntimeError, AssertionError):
        return None
    return lambda: torch.cuda.utilization() / 100
