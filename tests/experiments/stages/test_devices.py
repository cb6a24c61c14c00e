"""Stages ``benchmark`` and ``export`` where a runtime or a file fails, and files of earlier exports."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from amc.errors import AmcError
from amc.latency import BACKENDS
from amc.latency.timing import measure
from tests.experiments.helpers import amc, done, read_json, refused
from tests.fakes import Spinning, registered


class Broken(Spinning):
    """A runtime on which networks fail, from a batch size on."""

    name = "broken"

    def __init__(self, since: int = 1, error: Exception | None = None) -> None:
        self.since = since
        self.error = error or AmcError("the phone is unplugged")

    def prepare(self, model: Any, input_shape: tuple[int, int, int], batch: int, threads: int) -> Any:
        """Fail, or return a loop."""
        if batch >= self.since:
            raise self.error
        return super().prepare(model, input_shape, batch, threads)


@pytest.fixture
def again(reported: Path, tmp_path: Path) -> Path:
    """A copy of a pruned run to work in."""
    return shutil.copytree(reported, tmp_path / "again")


# --- benchmark


def benchmarked(cwd: Path, backends: str, *own: str) -> tuple[str, dict[str, Any]]:
    job = ("run_dir=run", "stages=[benchmark,report]", f"latency.backends=[{backends}]", *own)
    return done(*job, cwd=cwd).out, read_json(cwd / "run/stages/benchmark.json")


def test_a_runtime_that_fails_does_not_stop_the_others(again: Path) -> None:
    with registered(BACKENDS, broken=Broken()):
        out, facts = benchmarked(again, "broken,torch", "latency.throughput_batch=0")
    assert "benchmark: broken is left out: the phone is unplugged\n" in out
    broken, torch_ = facts["runtimes"]
    assert (broken["unavailable"], broken["comparison"]) == ("the phone is unplugged", None)
    assert torch_["comparison"]["speedup"] > 0


@pytest.mark.parametrize(
    "error", [AmcError("the phone is unplugged"), MemoryError("cannot allocate\nmemory")]
)
def test_a_failure_at_the_larger_batch_keeps_what_was_measured(again: Path, error: Exception) -> None:
    with registered(BACKENDS, broken=Broken(4, error)):
        _, facts = benchmarked(again, "broken", "latency.throughput_batch=4")
    assert facts["runtimes"][0]["comparison"]["speedup"] > 0
    assert facts["throughput"][0]["unavailable"] == str(error).split("\n")[0]


def test_a_benchmark_without_any_measurement_fails(again: Path) -> None:
    with registered(BACKENDS, broken=Broken()):
        outcome = amc("run_dir=run", "stages=[benchmark]", "latency.backends=[broken]", cwd=again)
    refused(outcome, "the phone is unplugged")
    assert not (again / "run/stages/benchmark.json").exists()


@pytest.mark.parametrize("lacking", [0, 1])
def test_memory_of_one_network_alone_is_not_told(
    again: Path, lacking: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = iter([None if place == lacking else 2**20 for place in range(2)])
    monkeypatch.setattr(measure, "peak_memory", lambda *_: next(seen))
    own = ("latency.throughput_batch=0", "latency.memory=true")
    out, facts = benchmarked(again, "onnxruntime", *own)
    (line,) = [line for line in out.splitlines() if line.startswith("benchmark: ")]
    assert "file " in line
    assert "memory" not in line
    assert len(facts["runtimes"][0]["peak_memory_bytes"]) == 1
