"""``agent=tpe``, ``agent=netadapt`` and ``agent=thompson`` as a user runs them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from amc import Strategy
from tests.experiments.helpers import (
    TINY,
    amc,
    check_error,
    composed,
    done,
    interrupt,
    read_json,
    read_lines,
    refused,
    timeless,
    workspace,
)

FINE = "budget.round_to=1"


class WithoutOptuna:
    """Finds every module but one."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "optuna":
            raise ModuleNotFoundError(f"No module named {name!r}")


@pytest.fixture
def without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "optuna", raising=False)
    monkeypatch.setattr(sys, "meta_path", [WithoutOptuna(), *sys.meta_path])


@pytest.fixture
def cwd(trained_run: Path) -> Path:
    """A current directory with a trained run."""
    return trained_run


def search(cwd: Path, *overrides: str) -> Path:
    done("run_dir=run", "stages=[search]", "agent.episodes=12", FINE, *overrides, cwd=cwd)
    return cwd / "run"


@pytest.mark.parametrize(
    ("agent", "more"),
    [
        ("tpe", ("compressor.order=l1", "agent.guide=none")),
        ("netadapt", ()),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("tpe", ()),
                ("tpe", ("agent.guide=uniform",)),
                ("netadapt", ("compressor.order=l1", "agent.guide=none")),
                ("netadapt", ("agent.guide=uniform",)),
            )
        ),
    ],
)
def test_the_best_network_within_the_budget_is_kept(cwd: Path, agent: str, more: tuple[str, ...]) -> None:
    run = search(cwd, f"agent={agent}", "reward=agreement", *more)
    episodes = read_lines(run / "search.jsonl")
    facts = read_json(run / "stages/search.json")
    assert facts["agent"] == agent
    assert facts["episodes"] == len(episodes) <= 12
    within = [line for line in episodes if line["phase"] != "relaxed"]
    best = max(within, key=lambda line: line["return"])
    assert all(line["macs_ratio"] <= 0.5 for line in within)
    assert list(Strategy.load(run / "strategy.json").widths) == best["widths"]
    assert facts["best_return"] == best["return"]


@pytest.mark.parametrize(
    "agent", ["thompson", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tpe", "netadapt"))]
)
def test_one_seed_one_result_which_later_stages_take(cwd: Path, tmp_path: Path, agent: str) -> None:
    again = shutil.copytree(cwd, tmp_path / "again")
    one, other = (search(folder, f"agent={agent}", "seed=0") for folder in (cwd, again))
    assert timeless(one / "search.jsonl") == timeless(other / "search.jsonl")
    assert (one / "strategy.json").read_bytes() == (other / "strategy.json").read_bytes()
    done("run_dir=run", "stages=[prune,finetune]", cwd=cwd)
    assert read_json(one / "stages/prune.json")["macs_ratio"] <= 0.5
    assert not (one / "agent.zip").exists()


def test_netadapt_comes_down_from_the_dense_network(cwd: Path) -> None:
    episodes = read_lines(search(cwd, "agent=netadapt", "agent.candidates=1") / "search.jsonl")
    phases = [line["phase"] for line in episodes]
    assert phases[0] == phases[-1] == "search"  # the guide, and the last step
    relaxed = [line for line in episodes if line["phase"] == "relaxed"]
    assert relaxed[0]["macs_ratio"] > 0.75
    ratios = [line["macs_ratio"] for line in relaxed]
    assert ratios == sorted(ratios, reverse=True)


def test_netadapt_searches_parameters_too(cwd: Path) -> None:
    run = search(cwd, "agent=netadapt", "budget=params", "budget.params_ratio=0.4")
    assert read_json(run / "strategy.json")["params_ratio"] <= 0.4


@pytest.mark.slow
def test_a_search_stopped_before_anything_meets_the_budget_goes_on(cwd: Path, tmp_path: Path) -> None:
    arguments = ("agent=netadapt", "agent.guide=none", "reward=mynet.score")
    unbroken = search(shutil.copytree(cwd, tmp_path / "whole"), *arguments)
    interrupt(cwd, 3)
    stopped = amc("run_dir=run", "stages=[search]", "agent.episodes=12", FINE, *arguments, cwd=cwd)
    refused(stopped, "no episode within the budget", "goes on", status=130)
    assert not (cwd / "run/strategy.json").exists()
    (cwd / "interrupt").unlink()
    resumed = search(cwd, *arguments)
    assert timeless(resumed / "search.jsonl") == timeless(unbroken / "search.jsonl")
    assert (resumed / "strategy.json").read_bytes() == (unbroken / "strategy.json").read_bytes()


@pytest.mark.parametrize(
    ("agent", "cases"),
    [
        (
            "netadapt",
            [
                (["reward=accuracy_macs"], ["netadapt", "accuracy_macs", "reward=accuracy"]),
                (["agent.steps=13"], ["agent.steps=13", "agent.episodes is 12"]),
                (["agent.steps=4", "agent.candidates=4"], ["agent.candidates=4", "17 with the guide"]),
                (["agent.candidates=-1"], ["agent.candidates is -1"]),
                (["compressor.order=l1"], ["compressor.order is 'l1'", "obs"]),
            ],
        ),
        (
            "thompson",
            [
                (["reward=accuracy_params"], ["thompson", "accuracy_params", "reward=accuracy"]),
                (["compressor.order=l1", "agent.guide=none"], ["agent=thompson needs order=obs"]),
                (["agent.noise=0"], ["agent.noise is 0"]),
            ],
        ),
        ("tpe", [(["agent.warmup_episodes=-1"], ["agent.warmup_episodes is -1"])]),
    ],
)
def test_settings_that_exclude_each_other_are_refused(
    trained_once: Path, agent: str, cases: list[tuple[list[str], list[str]]]
) -> None:
    base = composed(*TINY, f"agent={agent}", "agent.episodes=12", "run_dir=run", "stages=[search]")
    for overrides, parts in cases:
        message = check_error(base, *overrides, cwd=trained_once)
        assert all(part in message for part in parts), (overrides, message)


@pytest.mark.usefixtures("without_optuna")
def test_a_missing_optuna_is_reported_before_the_training(tmp_path: Path) -> None:
    arguments = (*TINY, "agent=tpe", "run_dir=run")
    refused(amc(*arguments, cwd=workspace(tmp_path)), "agent=tpe", "pip install 'amc-search[tpe]'")
    assert not (tmp_path / "run/dense.safetensors").exists()


@pytest.mark.usefixtures("without_optuna")
def test_without_optuna_the_other_stages_of_such_a_run_go_on(cwd: Path) -> None:
    done("run_dir=run", "stages=[train,evaluate]", "agent=tpe", cwd=cwd)
    assert read_json(cwd / "run/stages/evaluate.json")["dense"]
