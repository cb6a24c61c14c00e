from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import pytest

from tests.experiments.helpers import TINY, amc, artifacts, done, read_json, refused, workspace


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
    assert b"search/macs_ratio" in log.read_bytes()

    done(*TINY, stages, "run_dir=plain", cwd=cwd)
    assert read_json(cwd / "tracked/strategy.json") == read_json(cwd / "plain/strategy.json")
    ours = {name for name in artifacts(cwd / "tracked") if not name.startswith("wandb/")}
    assert ours == artifacts(cwd / "plain").keys()


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is not None, reason="tensorboard is installed")
def test_tensorboard_without_its_package_says_how_to_install_it(cwd: Path) -> None:
    outcome = amc(*TINY, "tracker=tensorboard", "run_dir=run", cwd=cwd)
    refused(outcome, "pip install", "amc-search[tensorboard]")
    assert not (cwd / "run/dense.safetensors").exists()


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_writes_into_the_run_folder(cwd: Path) -> None:
    done(*TINY, "stages=[train]", "tracker=tensorboard", "run_dir=run", cwd=cwd)
    (events,) = (cwd / "run/tensorboard").glob("events.*")
    assert events.stat().st_size > 0
