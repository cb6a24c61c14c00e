import time

import pytest
import torch
from torch import nn

from amc.errors import AmcError
from amc.latency import get_backend
from amc.latency.serving import Clocks, ServeSettings, serve, serve_models


class Machine:
    """Time passes only while a request is served or the server sleeps; serving is all CPU time."""

    def __init__(self) -> None:
        self.now, self.busy, self.order = 0.0, 0.0, ""

    def takes(self, name: str, *seconds: float):
        left = list(seconds)

        def run() -> None:
            spent = left.pop(0) if len(left) > 1 else left[0]
            self.now += spent
            self.busy += spent
            self.order += name

        return run

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def clocks(self, **more) -> Clocks:
        return Clocks(lambda: self.now, lambda: self.busy, self.sleep, **more)


def test_utilisation_falls_with_the_time_that_a_request_takes():
    machine = Machine()
    runs = {"dense": machine.takes("d", 0.05), "pruned": machine.takes("p", 0.02)}
    found = serve(runs, ServeSettings(rate=10, seconds=2, slices=4), machine.clocks())
    assert (found.rate, found.deadline_ms) == (10, 100)
    assert found.served["dense"].cpu_utilisation == pytest.approx(0.5)
    assert found.served["pruned"].cpu_utilisation == pytest.approx(0.2)
    for name, milliseconds in (("dense", 50), ("pruned", 20)):
        served = found.served[name]
        assert (served.p50_ms, served.p99_ms) == (pytest.approx(milliseconds), pytest.approx(milliseconds))
        assert (served.requests, served.missed, served.gpu_utilisation) == (20, 0, None)
    assert machine.order == "dp" + "dddddppppp" + "pppppddddd" + "dddddppppp" + "pppppddddd"


@pytest.mark.parametrize(
    ("rate", "slices", "requests"),
    [(0.3, 10, [1, 1, 1]), (1.4, 10, [2, 2, 2, 2, 1, 1, 1, 1, 1, 1]), (0.01, 10, [1])],
)
def test_a_slow_rate_takes_the_asked_time_too(rate, slices, requests):
    machine = Machine()
    runs = {"a": machine.takes("a", 0.5), "b": machine.takes("b", 0.5)}
    found = serve(runs, ServeSettings(rate=rate, seconds=10, slices=slices), machine.clocks())
    assert found.served["a"].requests == found.served["b"].requests == sum(requests)
    assert machine.now == pytest.approx(1 + 2 * max(10, 1 / rate))
    assert machine.order == "ab" + "".join(
        ("b" * n + "a" * n) if index % 2 else ("a" * n + "b" * n) for index, n in enumerate(requests)
    )


def test_latency_counts_from_the_due_time_of_a_request():
    machine = Machine()
    run = machine.takes("x", 0.01, 0.25, 0.01)  # the warm-up, the first request, all others
    found = serve({"x": run}, ServeSettings(rate=10, seconds=0.5, slices=1), machine.clocks()).served["x"]
    # due at 0, 100, 200, 300, 400 ms; done at 250, 260, 270, 310, 410 ms
    assert found.p50_ms == pytest.approx(70)
    assert found.p90_ms == pytest.approx(160 + 0.6 * 90)
    assert found.missed == 2


def test_an_overloaded_server_falls_behind():
    machine = Machine()
    settings = ServeSettings(rate=10, seconds=1, slices=1, deadline_ms=310)
    found = serve({"x": machine.takes("x", 0.2)}, settings, machine.clocks()).served["x"]
    assert found.requests == 10
    assert found.missed == 8  # latencies of 200, 300, 400, ... ms
    assert found.cpu_utilisation == pytest.approx(1)


def test_the_default_rate_is_half_the_capacity_of_the_first_network():
    machine = Machine()
    runs = {"dense": machine.takes("d", 0.04), "pruned": machine.takes("p", 0.01)}
    found = serve(runs, ServeSettings(seconds=4, slices=2), machine.clocks())
    assert found.rate == pytest.approx(12.5)
    assert found.served["dense"].cpu_utilisation == pytest.approx(0.5)


def test_the_gpu_is_queried_once_a_slice():
    machine, answers = Machine(), iter([0.2, 0.4])
    settings = ServeSettings(rate=10, seconds=1, slices=2)
    found = serve({"x": machine.takes("x", 0.01)}, settings, machine.clocks(gpu=lambda: next(answers)))
    assert found.served["x"].gpu_utilisation == pytest.approx(0.3)


@pytest.mark.parametrize("field", ["rate", "seconds", "slices", "deadline_ms"])
def test_impossible_loads(field):
    with pytest.raises(AmcError, match=f"serve.{field} is -1; expected a positive number"):
        ServeSettings(**{field: -1})


@pytest.mark.slow
def test_a_smaller_network_keeps_the_machine_less_busy():
    def net(width: int) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )

    threads, start = torch.get_num_threads(), time.perf_counter()
    models = {"dense": net(64), "pruned": net(8)}
    found = serve_models(
        models, (3, 32, 32), get_backend("onnxruntime"), ServeSettings(seconds=0.4, slices=4)
    )
    assert found.served["dense"].cpu_utilisation > 1.5 * found.served["pruned"].cpu_utilisation > 0
    assert found.served["dense"].p50_ms > found.served["pruned"].p50_ms > 0
    assert torch.get_num_threads() == threads
    assert time.perf_counter() - start < 30
