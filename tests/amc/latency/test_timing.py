import ast
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import nn

import amc.latency
from amc.errors import AmcError, SettingError
from amc.latency import BACKENDS, Timing, compare, get_backend, measure, ratio
from tests.fakes import registered


def busy(steps: int) -> Callable[[], None]:
    def run() -> None:
        total = 0
        for step in range(steps):
            total += step

    return run


def ticking_clock() -> Callable[[], float]:
    """One second passes between two looks at it."""
    return map(float, count()).__next__


def conv_net(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 10),
    )


def timing(*samples_ms: float) -> Timing:
    return Timing(0.0, 0.0, 0.0, len(samples_ms), 1, samples_ms)


def test_four_times_the_work_takes_longer():
    timings = measure({"long": busy(40_000), "short": busy(10_000)}, rounds=9, min_round_seconds=0.005)
    assert timings["long"].median_ms / timings["short"].median_ms > 1.5
    assert timings["long"].repeats == timings["short"].repeats
    assert timings["long"].repeats * timings["long"].median_ms > 2.5
    assert timings["long"].rounds == len(timings["long"].samples_ms) == 9


def test_order_alternates_between_rounds():
    calls: list[str] = []
    runs = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b"), "c": lambda: calls.append("c")}
    measure(runs, rounds=3, warmup=2, min_round_seconds=0.5, clock=ticking_clock())
    assert "".join(calls) == "aabbcc" + "abc" + "abc" + "cba" + "abc"  # warm-up, calibration, rounds


def test_repeats_are_calibrated_to_the_slowest():
    now = [0.0]

    def lasts(seconds: float) -> Callable[[], None]:
        def run() -> None:
            now[0] += seconds

        return run

    timings = measure(
        {"slow": lasts(0.004), "fast": lasts(0.001)}, min_round_seconds=0.02, clock=lambda: now[0]
    )
    assert 5 <= timings["slow"].repeats <= 7
    assert timings["slow"].median_ms == pytest.approx(4)
    assert timings["fast"].p90_ms == pytest.approx(1)
    assert timings["fast"].iqr_ms == pytest.approx(0, abs=1e-9)


def test_nothing_to_measure_is_refused():
    with pytest.raises(AmcError, match="0 callables"):
        measure({})


def test_speedup_is_the_median_of_ratios_within_rounds():
    result = ratio(timing(2, 40, 3, 4, 5), timing(1, 10, 1, 1, 1))  # ratios 2, 4, 3, 4, 5
    assert (result.speedup_q1, result.speedup, result.speedup_q3) == (3, 4, 4)
    with pytest.raises(SettingError, match="cannot be paired"):
        ratio(timing(1, 2), timing(1))
    with pytest.raises(AmcError, match="took 0 ms; likely the clock is too coarse"):
        ratio(timing(1, 2), timing(1, 0))


@pytest.mark.slow
def test_narrow_network_is_faster_on_every_backend():
    threads = torch.get_num_threads()
    seen: list[str] = []
    results = compare(conv_net(96), conv_net(8), (3, 16, 16), rounds=3, progress=seen.append)
    assert [result.backend for result in results] == seen == ["torch", "onnxruntime"]
    for result in results:
        assert result.unavailable is None
        assert result.comparison is not None
        assert result.comparison.speedup > 1
        assert result.clock == "process_time"
        assert result.device
        assert json.loads(json.dumps(result.to_json()))["comparison"]["speedup"] == result.comparison.speedup
    assert torch.get_num_threads() == threads


def test_several_threads_use_the_wall_clock_and_are_restored():
    threads = torch.get_num_threads()
    (result,) = compare(
        conv_net(4), conv_net(4), (3, 8, 8), backends=["torch"], threads=threads + 1, rounds=1
    )
    assert result.clock == "perf_counter"
    assert torch.get_num_threads() == threads


def test_the_reason_of_an_unavailable_backend_is_kept():
    class Absent:
        name = "absent"
        precision = "int8"

        def available(self):
            return "not installed: absent"

    with registered(BACKENDS, absent=Absent()):
        (result,) = compare(conv_net(4), conv_net(4), (3, 8, 8), backends=["absent"])
    assert result.unavailable == "not installed: absent"
    assert result.comparison is result.version is None


def test_unknown_backend_names_the_close_one():
    with pytest.raises(AmcError, match="did you mean 'onnxruntime'"):
        get_backend("onnx_runtime")
    with pytest.raises(AmcError, match=r"expected one of torch, .*, ssh"):
        compare(conv_net(4), conv_net(4), (3, 8, 8), backends=["torch", "zzz"])


def test_import_stays_light():
    heavy = {"torch", "onnx", "onnxruntime", "openvino", "executorch", "ai_edge_litert", "tensorrt", "numpy"}
    code = f"import sys, amc.latency; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


FOLDERS = ("portable", "remote", "registry", "timing", "comparison", "serving", "prediction")
"""Folders and files of amc/latency; each may import from those before it, and from itself."""


def test_imports_between_the_folders_go_one_way():
    root = Path(amc.latency.__file__).parent
    seen = set()
    for path in root.rglob("*.py"):
        own = path.relative_to(root).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):  # imports within functions too
            if own == "__init__" or not isinstance(node, ast.ImportFrom | ast.Import):
                continue
            names = [node.module] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            for name in names:
                if name.startswith("amc.latency"):
                    other = name.split(".")[2]
                    assert FOLDERS.index(other) <= FOLDERS.index(own), f"{path} imports {name}"
                    seen.add((own, other))
    assert ("timing", "registry") in seen
