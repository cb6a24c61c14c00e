from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import conf
from tests.experiments.helpers import TINY, composed, done, workspace
from tests.experiments.wandb_stub import wandb_service

FILES = sorted((Path(conf.__file__).parent / "sweep").glob("*.yaml"))
each_sweep = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def read(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text())


def own_overrides(sweep: dict[str, Any]) -> list[str]:
    """The overrides that the command of a sweep gives to all its runs."""
    assert sweep["command"][:2] == ["${env}", "amc"]
    assert sweep["command"][-1] == "${args_no_hyphens}"
    return sweep["command"][2:-1]


def values(parameter: dict[str, Any]) -> list[Any]:
    if "values" in parameter:
        return parameter["values"]
    assert parameter.keys() == {"distribution", "min", "max"}
    assert parameter["min"] < parameter["max"]
    return [parameter["min"], parameter["max"]]


@each_sweep
def test_every_parameter_and_value_composes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    sweep = read(file)
    parameters = {name: values(parameter) for name, parameter in sweep["parameters"].items()}
    assert "agent" not in parameters or not [name for name in parameters if name.startswith("agent.")]
    for index in range(max(map(len, parameters.values()))):  # the values of all parameters side by side
        chosen = {name: options[index % len(options)] for name, options in parameters.items()}
        assert all(isinstance(value, int | float | str) for value in chosen.values())
        words = [f"{name}={value}" for name, value in chosen.items()]
        config = OmegaConf.structured(composed(*own_overrides(sweep), *words))
        assert config.run_dir == "runs/sweep/abc"
        assert (config.tracker.name, config.tracker.mode) == ("wandb", "online")
        for name, value in chosen.items():
            assert (config.agent.name if name == "agent" else OmegaConf.select(config, name)) == value


@each_sweep
def test_a_misspelt_parameter_does_not_compose(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    sweep = read(file)
    name, parameter = next(iter(sweep["parameters"].items()))
    with pytest.raises((HydraException, OmegaConfBaseException)):
        composed(*own_overrides(sweep), f"{name}x={values(parameter)[0]}")


@each_sweep
def test_a_sweep_opens_with_its_commands(file: Path) -> None:
    head = file.read_text().split("\nprogram:")[0]
    assert re.findall(r"^#   (.*)$", head, re.MULTILINE) == [
        f"wandb sweep conf/sweep/{file.name}",
        "wandb agent ENTITY/amc-search/SWEEP_ID",
    ]
    assert read(file)["project"] == composed("tracker=wandb").tracker.project == "amc-search"


def test_a_run_puts_the_metric_of_the_sweeps_into_its_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary: dict[str, Any] = {}
    logged: set[str] = set()
    run = SimpleNamespace(
        summary=summary,
        log=logged.update,
        finish=lambda exit_code=None: None,
        url=None,
        resumed=False,
        id="r",
        settings=SimpleNamespace(sync_dir=str(tmp_path)),
        log_artifact=lambda artifact: None,
    )
    monkeypatch.setattr(wandb, "init", lambda **kwargs: run)
    done(*TINY, "stages=[train,search]", "tracker=wandb", cwd=workspace(tmp_path))
    assert {"search/return", "search/top1"} <= logged
    for file in FILES:
        metric = read(file)["metric"]
        assert isinstance(summary[metric["name"]], float)
        assert metric["goal"] == "maximize"


@pytest.mark.slow
def test_an_agent_runs_a_sweep_and_goes_on_after_a_failed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cwd = workspace(tmp_path / "cwd")
    sweep = read(FILES[0])
    runs = [
        {"budget.macs_ratio": 0.0001, "agent": "random", "seed": 0},
        {"budget.macs_ratio": 0.5, "agent": "random", "seed": 1},
        {"budget.macs_ratio": 0.7, "agent": "greedy", "seed": 2},
    ]
    sweep["command"][2:2] = TINY
    sweep["command"][sweep["command"].index("tracker.mode=online")] = "tracker.mode=offline"
    (cwd / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    with wandb_service(runs) as service:
        environment = _environment(service.url, tmp_path)
        made = _wandb("sweep", "sweep.yaml", cwd=cwd, environment=environment)
        assert "wandb agent me/amc-search/sw" in made, made
        assert yaml.safe_load(service.config)["command"] == sweep["command"]
        said = _wandb("agent", "me/amc-search/sw", "--count", "3", cwd=cwd, environment=environment)
    assert "raise the budget" in said, (said, service.operations)
    assert service.handed == ["run0", "run1", "run2"]
    folders = sorted((cwd / "runs/sweep").iterdir())
    assert [folder.name for folder in folders] == ["run1", "run2"]  # the first was refused before any work
    assert all((folder / "stages/evaluate.json").exists() for folder in folders)
    for folder, swept in zip(folders, runs[1:], strict=True):
        config = OmegaConf.load(folder / ".hydra/config.yaml")
        found = {
            "budget.macs_ratio": config.budget.macs_ratio, "agent": config.agent.name, "seed": config.seed
        }  # fmt: skip
        assert found == swept


def _environment(url: str, home: Path) -> dict[str, str]:
    own = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "HYDRA_"))}
    return own | {
        "HOME": str(home),
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "WANDB_API_KEY": "0" * 40,
        "WANDB_BASE_URL": url,
    }


def _wandb(*arguments: str, cwd: Path, environment: dict[str, str]) -> str:
    command = [sys.executable, "-m", "wandb", *arguments]
    outcome = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280)
    assert outcome.returncode == 0, (outcome.stdout, outcome.stderr)
    return outcome.stdout + outcome.stderr
