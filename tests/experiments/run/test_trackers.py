from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import pytest

from experiments.run import trackers
from experiments.run.folder import RunFolder
from experiments.run.reports import has_current_report
from experiments.run.trackers import Sent, group_of, kept_files, summary_of
from tests.experiments.helpers import (
    FAKE,
    TINY,
    amc,
    artifacts,
    composed,
    done,
    read_json,
    refused,
    workspace,
)


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    return workspace(tmp_path)


def test_wandb_offline_writes_into_the_run_folder(
    cwd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    stages = "stages=[train,search]"
    outcome = amc(*TINY, stages, "tracker=wandb", "run_dir=tracked", cwd=cwd)
    assert outcome.status == 0, outcome.err
    # wandb takes our package "agents", where it is imported already, for OpenAI's and advertises.
    assert [line for line in outcome.err.splitlines() if not line.startswith("wandb: ")] == []
    (log,) = (cwd / "tracked/wandb").glob("offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 60  # wandb's own process writes the file, a little later on a busy machine
    while b"search/macs_ratio" not in log.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)
    written = log.read_bytes()
    assert b"search/macs_ratio" in written
    assert b"train/val_top1" in written
    assert b"strategy.json" in written
    place = str(log.parent.relative_to(cwd))
    assert f"wandb: offline, in {place}; with an account: wandb sync {place}\n" in outcome.out

    assert amc("run_dir=tracked", "stages=[search]", "tracker.mode=offline", cwd=cwd).status == 0
    first, second = sorted((cwd / "tracked/wandb").glob("offline-run-*/run-*.wandb"))
    assert first == log
    assert first.name == second.name  # the same id
    deadline = time.monotonic() + 60
    while b"strategy.json" not in second.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)
    # The service keeps the last part alone, so it holds the whole run.
    assert b"train/val_top1" in second.read_bytes()
    sent = (cwd / "tracked/wandb/sent.jsonl").read_text().splitlines()
    logged = [line for line in sent if line.startswith('{"log"')]
    assert len(logged) == len(set(logged)) >= 1 + 4  # one epoch, four episodes, though the search ran twice

    done(*TINY, stages, "run_dir=plain", cwd=cwd)
    assert read_json(cwd / "tracked/strategy.json") == read_json(cwd / "plain/strategy.json")
    ours = {name for name in artifacts(cwd / "tracked") if not name.startswith("wandb/")}
    assert ours == artifacts(cwd / "plain").keys()


def test_what_a_run_has_sent_survives_a_torn_line_and_damage(tmp_path: Path) -> None:
    sent = Sent(tmp_path)
    assert sent.note({"train/loss": 1.0, "step": 1})
    assert sent.note({"train/loss": float("nan"), "step": 2})
    assert not sent.note({"train/loss": 1.0, "step": 1})
    sent.conclude({"train/trusted": True})
    path = tmp_path / "wandb/sent.jsonl"
    path.write_bytes(path.read_bytes() + b'{"log": {"tor')
    again = Sent(tmp_path)
    assert (again.id, len(again.metrics), again.summary) == (sent.id, 2, {"train/trusted": True})
    assert not again.note({"train/loss": 1.0, "step": 1})
    assert again.note({"train/loss": 0.5, "step": 1})
    assert len(Sent(tmp_path).metrics) == 3
    path.write_text("[1]\n")
    assert Sent(tmp_path).id != sent.id
    assert [file.name for file in path.parent.iterdir() if file != path] == ["sent.jsonl.damaged"]


def test_the_jobs_of_a_multirun_and_the_budgets_of_a_job_are_groups(tmp_path: Path) -> None:
    config = composed(*FAKE)
    job = tmp_path / "study" / "0_s0"
    (job / "stages").mkdir(parents=True)
    (job / "macs_0.30").mkdir()
    assert group_of(config, job) is None
    assert group_of(config, job / "macs_0.30") == "0_s0"
    (tmp_path / "study/multirun.yaml").touch()
    assert group_of(config, job) == "study"
    assert group_of(config, job / "macs_0.30") == "study"
    assert group_of(composed(*FAKE, "tracker.group=mine"), job) == "mine"


def test_each_budget_of_a_job_has_an_id_of_its_own_under_a_wandb_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "given")
    folders = [tmp_path / "job", tmp_path / "job/macs_0.30", tmp_path / "job/macs_0.50"]
    for folder in folders:
        (folder / "wandb").mkdir(parents=True)
    (folders[0] / "stages").mkdir()
    assert [Sent(folder).id for folder in folders] == ["given", "given-macs_0.30", "given-macs_0.50"]


def test_the_numbers_of_every_stage_are_told_by_their_path() -> None:
    times = {"speedup": 2.0, "dense": {"median_ms": 4.0}, "pruned": {"median_ms": 2.0}}
    rows = [
        {"backend": "torch", "comparison": None, "unavailable": "why"},
        {"backend": "onnxruntime", "comparison": times, "others": {"quantized": times | {"speedup": 3.0}}},
    ]
    own = {"speedup": 2.0, "dense_ms": 4.0, "ms": 2.0, "quantized/speedup": 3.0}
    own |= {"quantized/dense_ms": 4.0, "quantized/ms": 2.0}
    found = summary_of("benchmark", {"runtimes": rows, "throughput": rows[:1], "stage_seconds": 1.5})
    assert found.pop("benchmark/stage_seconds") == 1.5
    assert found == {f"benchmark/onnxruntime/{name}": value for name, value in own.items()}
    rounds = [{"density": 0.5, "top1_pruned": 80.0}, {"density": 0.2, "top1_pruned": 70.0, "layers": [{}]}]
    found = summary_of("sparsify", {"dense": {"top1": 90.0}, "rounds": rounds})
    assert found == {"sparsify/dense/top1": 90.0, "sparsify/density": 0.2, "sparsify/top1_pruned": 70.0}
    found = summary_of("schedule", {"steps": [{"ratios": {"macs": 0.5}, "search_top1": 80.0, "folder": "s"}]})
    assert found == {"schedule/search_top1": 80.0}
    spearman = {"a ~ b": (0.5, 0.1, 0.9), "c": {"loss": [0.25, 0.0, 0.5], "accuracy": None}}
    found = summary_of("correlate", {"policies": 3, "spearman": spearman})
    assert found == {
        "correlate/policies": 3,
        "correlate/spearman/a ~ b": 0.5,
        "correlate/spearman/c/loss": 0.25,
    }


def test_a_tracker_hears_whether_the_run_has_failed(cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[bool] = []
    summaries: list[trackers.Metrics] = []

    def finish(summary: trackers.Metrics, files: trackers.Files, failed: bool) -> None:
        summaries.append(summary)
        ends.append(failed)

    own = trackers.Tracker(lambda metrics, step: None, finish)
    monkeypatch.setitem(trackers._MAKERS, "none", lambda config, folder: own)  # type: ignore[index]
    done(*TINY, "stages=[train,evaluate]", "run_dir=run", cwd=cwd)
    assert summaries[0]["evaluate/dense/top1"] == read_json(cwd / "run/stages/evaluate.json")["dense"]["top1"]
    refused(amc("run_dir=run", "stages=[prune]", cwd=cwd), "stages=[search]")
    assert ends == [False, True]
    assert list((cwd / "run/stages").glob("*.begun")) == []


def test_a_run_gives_its_strategy_report_and_networks_to_a_tracker(tmp_path: Path) -> None:
    folder = RunFolder.made(tmp_path)
    assert kept_files(folder, report=has_current_report(folder)) == {}
    (tmp_path / "exports").mkdir()
    for name in ("strategy.json", "report.html", "exports/model.onnx", "exports/README.md"):
        (tmp_path / name).touch()
    folder.record("export", {"files": [{"format": "onnx", "file": "exports/model.onnx", "bytes": 0}]})
    (tmp_path / "report.json").write_text('{"dense": {"top1": 90.0}, "pruned": {"top1": 80.0}}')
    folder.record("evaluate", {"dense": {"top1": 90.0}, "pruned": {"top1": 70.0}})
    assert not has_current_report(folder)  # it is about weights that the run no longer has
    assert "report" not in kept_files(folder, report=False)
    folder.record("evaluate", {"dense": {"top1": 90.0}, "pruned": {"top1": 80.0}})
    assert kept_files(folder, report=has_current_report(folder)) == {
        "strategy": [tmp_path / "strategy.json"],
        "report": [tmp_path / "report.html"],
        "model": [tmp_path / "exports/model.onnx"],
    }


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is not None, reason="tensorboard is installed")
def test_tensorboard_without_its_package_says_how_to_install_it(cwd: Path) -> None:
    outcome = amc(*TINY, "tracker=tensorboard", "run_dir=run", cwd=cwd)
    refused(outcome, "pip install", "amc-search[tensorboard]")
    assert not (cwd / "run/dense.safetensors").exists()


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_writes_into_the_run_folder(cwd: Path) -> None:
    done(*TINY, "stages=[train,search]", "tracker=tensorboard", "run_dir=run", cwd=cwd)
    (events,) = (cwd / "run/tensorboard").glob("events.*")
    written = events.read_bytes()
    for name in (
        b"train/val_top1",
        b"search/macs_ratio",
        b"summary/search/best_return",
        b"strategy",
        b"config",
    ):
        assert name in written, name
