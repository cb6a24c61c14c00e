"""Stages ``benchmark`` and ``export`` where a runtime or a file fails, and files of earlier exports."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file

from amc.errors import AmcError
from amc.export import FORMATS, Format
from amc.export.quantized import QUANTIZED
from amc.latency import BACKENDS
from amc.latency.timing import measure
from amc.quantization.layers import is_quantized
from amc.runtimes.onnxruntime import ONNXRUNTIME
from experiments.run.folder import RunFolder
from experiments.run.trackers import kept_files
from tests.experiments.helpers import TINY, amc, done, read_json, refused, workspace
from tests.fakes import Spinning, registered

MAPS = """
from torch import nn
def make(num_classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
"""
"""A network without logits: one map for each class."""


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


def test_a_runtime_that_is_named_by_its_path_is_measured_at_both_batches(again: Path) -> None:
    _, facts = benchmarked(again, "tests.fakes.Spinning", "latency.throughput_batch=2", "latency.rounds=1")
    for batch, kind in ((1, "runtimes"), (2, "throughput")):
        (result,) = facts[kind]
        assert (result["backend"], result["batch"]) == ("spinning", batch)
        assert result["comparison"]["speedup"] > 0


class WithoutIntegers(Spinning):
    """A runtime that says that it runs int8 networks, and fails on each."""

    name = "floats"
    methods: ClassVar = {"static_int8": ""}

    def prepare(self, model: Any, input_shape: tuple[int, int, int], batch: int, threads: int) -> Any:
        """Fail on a quantized network, or return a loop."""
        if is_quantized(model):
            raise AmcError("no kernel for integers")
        return super().prepare(model, input_shape, batch, threads)


@pytest.mark.slow
def test_a_quantized_network_that_fails_leaves_the_times_of_the_float_ones(again: Path) -> None:
    done("run_dir=run", "stages=[quantize]", "quantize.sensitivity_images=0", cwd=again)
    with registered(BACKENDS, floats=WithoutIntegers()):
        out, facts = benchmarked(again, "floats", "latency.throughput_batch=0")
    assert "benchmark: floats, batch 1: the quantized network is not timed: no kernel for integers\n" in out
    (result,) = facts["runtimes"]
    assert (result["unavailable"], result["others"]) == (None, {})
    assert result["comparison"]["speedup"] > 0


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


@pytest.mark.slow
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


# --- export


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A current directory with a run whose network has no classes, pruned and quantized."""
    cwd = workspace(tmp_path_factory.mktemp("maps"))
    (cwd / "maps.py").write_text(MAPS)
    draws = torch.Generator().manual_seed(0)
    weights = {
        "0.weight": torch.randn(8, 3, 3, 3, generator=draws),
        "0.bias": torch.zeros(8),
        "2.weight": torch.randn(4, 8, 3, 3, generator=draws),
        "2.bias": torch.zeros(4),
    }
    save_file(weights, cwd / "w.safetensors")
    own = ("model=maps.make", "model.checkpoint=w.safetensors", "reward=likeness", "agent=uniform")
    more = ("quantize.sensitivity_images=0", "latency.throughput_batch=0", "run_dir=run")
    done(*TINY, *own, *more, "stages=[search,prune,quantize]", cwd=cwd)
    return cwd


@pytest.fixture
def mapping(maps: Path, tmp_path: Path) -> Path:
    """A copy of ``maps`` to work in."""
    return shutil.copytree(maps, tmp_path / "mapping")


@pytest.mark.slow
def test_a_quantized_network_without_classes_is_compared_on_all_outputs(mapping: Path) -> None:
    out = done("run_dir=run", "stages=[export]", cwd=mapping).out
    (file,) = read_json(mapping / "run/stages/export.json")["quantized"]["files"]
    found = file["runtimes"][0]
    assert (found["runtime"], found["failure"], found["agreement"]) == ("onnxruntime", None, None)
    assert found["mean"] < 0.1
    assert file["failure"] is None
    assert "export: onnxruntime: differences " in out
    assert "same class" not in out


@pytest.mark.slow
def test_a_comparison_that_fails_is_in_the_record_and_the_readme(
    mapping: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*given: Any) -> Any:
        run = ONNXRUNTIME.load(*given)
        return lambda: float("nan") * run()

    kind = replace(QUANTIZED["onnx"], readers=(replace(ONNXRUNTIME, load=load),))
    monkeypatch.setattr("experiments.stages.devices.quantized.QUANTIZED", {"onnx": kind})
    out = done("run_dir=run", "stages=[export]", cwd=mapping).out
    record = read_json(mapping / "run/stages/export.json")
    (file,) = record["quantized"]["files"]
    assert file["file"] == "exports/model_static_int8.onnx"
    assert file["failure"].startswith("onnxruntime: got NaN")
    assert "export: onnxruntime fails on it: got NaN" in out
    page = (mapping / "run/exports/README.md").read_text()
    assert "`model_static_int8.onnx` failed its check: onnxruntime: got NaN" in page
    assert "--network model_static_int8.onnx" not in page
    assert [each["network"] for each in record["predict"]] == ["model.onnx"]


def files_in(cwd: Path) -> set[str]:
    return {path.name for path in (cwd / "run/exports").iterdir()}


@pytest.mark.slow
def test_a_new_pruning_removes_the_files_of_the_network_before(mapping: Path) -> None:
    done("run_dir=run", "stages=[export]", "export.formats=[onnx,torch_export]", cwd=mapping)
    own = mapping / "run/exports/mine.txt"
    own.write_text("kept")
    assert files_in(mapping) == {
        *("model.onnx", "model.pt2", "model_static_int8.onnx", "model_static_int8.pt2"),
        *("predict.py", "README.md", "mine.txt"),
    }
    done("run_dir=run", "stages=[prune]", cwd=mapping)
    assert files_in(mapping) == {"mine.txt"}
    assert not (mapping / "run/stages/export.json").exists()


@pytest.mark.slow
def test_files_that_an_export_no_longer_writes_are_removed(again: Path) -> None:
    done("run_dir=run", "stages=[export]", "export.formats=[onnx,torch_export]", cwd=again)

    def fails(*_: Any) -> Any:
        raise AmcError("no longer")

    with registered(FORMATS, onnx=Format("model.onnx", (), fails)):
        done("run_dir=run", "stages=[export]", "export.formats=[onnx,torch_export]", cwd=again)
        assert files_in(again) == {"model.pt2", "README.md"}
        outcome = amc("run_dir=run", "stages=[export]", "export.formats=[onnx]", cwd=again)
    refused(outcome, "no longer")
    assert files_in(again) == {"model.pt2", "README.md"}  # those of the record, which is still true


def test_only_files_beside_each_other_are_removed(tmp_path: Path) -> None:
    folder = RunFolder.made(tmp_path / "run")
    folder.exports.mkdir()
    others = [tmp_path / "other.onnx", folder.path / "model.xml", folder.exports / "model.bin"]
    for path in (*others, folder.exports / "model.xml"):
        path.touch()
    (folder.exports / "model.mlpackage").mkdir()
    (folder.exports / "model.mlpackage/weights").touch()
    names = (
        "exports/model.xml",
        "exports/model.mlpackage",
        "../other.onnx",
        "exports/..",
        "exports",
        "/",
        "",
    )
    rows = [{"format": "own", "file": name, "bytes": 1} for name in names]
    folder.record("export", {"files": rows, "left_out": {}, "quantized": None, "predict": []})
    folder.forget("export")
    assert sorted(path.name for path in folder.path.iterdir()) == ["exports", "model.xml", "stages"]
    assert list(folder.exports.iterdir()) == []
    assert others[0].exists()
    folder.record_of("export").write_text("{")
    folder.forget("export")
    assert not folder.record_of("export").exists()


def test_a_linked_folder_of_exports_keeps_its_files(tmp_path: Path) -> None:
    folder = RunFolder.made(tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/model.onnx").touch()
    folder.exports.symlink_to(tmp_path / "elsewhere")
    rows = [{"format": "onnx", "file": "exports/model.onnx", "bytes": 1}]
    folder.record("export", {"files": rows})
    folder.forget("export")
    assert (tmp_path / "elsewhere/model.onnx").exists()


def test_a_tracker_gets_recorded_networks_alone(tmp_path: Path) -> None:
    folder = RunFolder.made(tmp_path)
    folder.exports.mkdir()
    for name in ("model.onnx", "model_static_int8.onnx", "model.pt2", "old.onnx"):
        (folder.exports / name).touch()
    assert kept_files(folder, report=False) == {}
    rows = [
        {"format": "own", "file": f"exports/{name}", "bytes": 1}
        for name in ("model.onnx", "model.pt2", "model_static_int8.onnx", "gone.onnx")
    ]
    quantized = {"method": "static_int8", "files": rows[2:]}
    folder.record("export", {"files": rows[:2], "quantized": quantized})
    names = ("model.onnx", "model_static_int8.onnx")
    assert kept_files(folder, report=False) == {"model": [folder.exports / name for name in names]}
    folder.record_of("export").write_text("[")
    assert kept_files(folder, report=False) == {}
