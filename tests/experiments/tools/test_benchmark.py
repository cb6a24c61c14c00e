"""The benchmarks: their JSON holds what it says, on jobs small enough to run here."""

import argparse
import json
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest

from amc.budget.budget import make_budget
from amc.budget.widths import width_space
from amc.errors import AmcError
from experiments.benchmark.__main__ import main, parser
from experiments.benchmark.faults.bench import JOB
from experiments.benchmark.faults.crashes import JOBS
from experiments.benchmark.training import finetune
from experiments.run import proxies
from experiments.run.proxies import around
from experiments.run.values import check_values
from experiments.words.comparison import names_of
from tests.experiments.helpers import TINY, composed, done, workspace
from tests.params import slow_but


def measured(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    main()
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_an_episode_is_split_into_parts_and_compared_with_the_forward_pass(capsys, monkeypatch):
    found = measured(
        capsys, monkeypatch, "search", "--model", "resnet20", "--resolution", "8",
        "--images", "32", "--calibration", "16", "--episodes", "4", "--reference",
        "--reference-episodes", "1",
    )  # fmt: skip
    assert found["episodes"] == 3  # the first one warms up
    assert set(found["split"]) == {"build", "refit", "forward", "scoring", "agent_and_rest"}
    assert 0 < found["pure_forward_cpu_seconds"] < found["cpu_seconds_per_episode"]
    assert found["ratio_quartiles"][0] <= found["ratio_to_pure_forward"] <= found["ratio_quartiles"][1]
    assert found["reference"]["cpu_seconds_per_episode"] == pytest.approx(
        sum(found["reference"]["split"].values())
    )
    assert found["peak_memory_mib"] > 50


def test_bad_input_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark", "proxies", "--networks", "1"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("benchmark: --networks is 1; expected at least 5")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["agents", "agent.sigma=0.3"], "agent.sigma=0.3 has no effect here: give --agents NAME+KEY=VALUE"),
        (["agents", "++agent=random"], "++agent=random has no effect here"),
        (["agents", "--agents", "random+episodes=7"], "random+episodes=7: all agents have the same number"),
        (["agents", "~agent"], "~agent has no effect here"),
        (
            ["agents", "budget.fit=cut", "--agents", "greedy", "ddpg+acts=weights"],
            "budget.fit is 'cut', which cuts the ratio of every step, but weights",
        ),
        (["proxies", "budget.macs_ratios=[0.3,0.2]"], "budget.macs_ratios=[0.3,0.2] is a list of budgets"),
        (
            ["rivals", "budget.size_ratios=[0.2]", "--folder", "none"],
            "give budget.size_ratio=0.2, and a call",
        ),
        (["rivals", "budget.params_ratio=0.3", "--folder", "none"], "is macs <= 0.5, params <= 0.3, but the"),
        (["rivals", "budget=params", "budget.macs_ratio=null", "--folder", "none"], "is params <= 0.5, but"),
        (["rivals", "schedule.ratios=[0.75]", "--folder", "none"], "schedule.ratios=[0.75] has no effect"),
        (["rivals", "stages=[schedule]", "--folder", "none"], "stages=[schedule] has no effect here: the"),
        (["rivals", "agent=greedy", "--folder", "none"], "agent=greedy has no effect here: the tools"),
        (["rivals", "seed=3", "--folder", "none"], "seed=3 has no effect here: give --seeds"),
        (["rivals", "budget.round_to=8", "--folder", "none"], "budget.round_to=8 has no effect here: the"),
        (["rivals", "prune.sequential=false", "--folder", "none"], "prune.sequential=false has no effect"),
        *(
            (["rivals", word, "--folder", "none"], f"{word} has no effect here: the tools search")
            for word in (
                *("reward=agreement", "budget.fit=cut", "budget.kind=macs", "workers=process"),
                *("compressor.order=taylor", "profile.points=3", "quantize.method=none", "latency.batch=2"),
            )
        ),
        (
            ["rivals", "compressor.max_inputs=100", "--folder", "none"],
            "compressor.max_inputs=100 has no effect here: FastNAS cuts all layers",
        ),
        (
            ["rivals", "compressor.prune_coupled=false", "--folder", "none"],
            "compressor.prune_coupled=false has no effect here: FastNAS cuts all layers",
        ),
        (["space", "budget.round_to=8"], "budget.round_to=8 has no effect here: give --ratios"),
        (
            ["space", "compressor.prune_coupled=false", "--prune-coupled", "both"],
            "compressor.prune_coupled=false has no effect here: --prune-coupled is given",
        ),
        (["quantizers", "quantize.ranges=mse"], "quantize.ranges=mse has no effect here: give --bits"),
        (["regret", "--agents", "random+episodes=7"], "random+episodes=7: all agents have the same number"),
        (["transfer", "a/run", "b/run", "a/../a/run"], "a/../a/run is named twice"),
        (["proxies", "--spread", "-1"], "argument --spread: got -1, expected a number above 0"),
        (["proxies", "--spread", "nan"], "argument --spread: got nan, expected a number above 0"),
    ],
)
def test_what_would_be_ignored_is_refused_before_any_work(capsys, monkeypatch, arguments, told):
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert told in capsys.readouterr().err


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [tmp_path / name for name in ("a/run", "b/run", "b/other")]
    assert names_of(folders) == ["a/run", "b/run", "b/other"]


def test_a_row_whose_library_is_missing_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)  # as if it were not installed
    assert [finetune.not_run(name) for name in ("plain", "lora")] == [None, "not installed: peft"]


@pytest.mark.parametrize(
    "what", ["search", "workers", "regret", "agents", "proxies", "space", "kills", "soak"]
)
def test_every_benchmark_explains_itself(what):
    options = parser().parse_args([what])
    assert isinstance(options, argparse.Namespace)
    assert callable(options.run)


@pytest.mark.slow
def test_regret_is_never_negative_and_zero_where_the_optimum_is_found(capsys, monkeypatch):
    found = measured(
        capsys, monkeypatch, "regret", "--agents", "greedy", "random", "ddpg+explore_share=0.3",
        "--seeds", "2", "--episodes", "10", "--train-epochs", "1",
    )  # fmt: skip
    assert found["policies"] > 100
    for agent in found["agents"].values():
        assert agent["regret"] >= 0
        assert (agent["regret"] == 0) == (agent["optimum_found"] == agent["searches"])
    assert found["agents"]["random"]["different_networks"] > 5


@pytest.mark.slow
def test_agents_are_compared_with_the_first_on_any_problem(capsys, monkeypatch, tmp_path):
    found = measured(
        capsys, monkeypatch, "agents", "train.epochs=1", "data.search_val=64", "threads=1",
        "--agents", "random", "greedy", "evolution+mutations=2", "--seeds", "2", "--episodes", "12",
        "--folder", str(tmp_path),
    )  # fmt: skip
    assert list(found["agents"]) == ["random", "greedy", "evolution+mutations=2"]
    assert [own["searches"] for own in found["agents"].values()] == [2, 1, 2]
    first = found["agents"]["random"]
    assert "less_first" not in first
    assert first["after"]["10"] <= first["best_return"]
    for own in found["agents"].values():
        low, high = own["interval"]
        assert low is high is None if own["searches"] == 1 else low <= own["best_return"] <= high
    less = found["agents"]["greedy"]["less_first"]
    assert less[0] == pytest.approx(found["agents"]["greedy"]["best_return"] - first["best_return"])
    assert (tmp_path / "evaluations.jsonl").read_text().count("\n") > 20


@pytest.mark.slow
def test_scores_are_correlated_with_the_test_images(capsys, monkeypatch):
    found = measured(
        capsys, monkeypatch, "proxies", "train.epochs=1", "data.search_val=64", "data.image_size=8",
        "threads=1", "budget.round_to=1", "--networks", "6", "--images", "32", "--mixed", "--halves",
    )  # fmt: skip
    names = ("accuracy", "loss", "agreement", "likeness")
    parts = ("", " mixed", ", worse half")
    assert set(found["spearman"]) == {
        f"{name} on {count}{part}" for name in names for count in (32, 64) for part in parts
    }
    for score in found["spearman"].values():
        for value, low, high in score.values():
            assert -1 <= low <= value <= high <= 1
    low, high = found["test_accuracy"]
    assert 0 <= low <= high <= 100


@pytest.mark.slow
def test_the_room_for_a_search_is_measured(capsys, monkeypatch):
    words = (
        "data=fake", "data.image_size=8", "data.train=64", "data.search_val=32", "data.calibration=16",
        "data.test=32", "train.epochs=1", "threads=1",
    )  # fmt: skip
    found = measured(
        capsys, monkeypatch, "space", *words, "--prune-coupled", "both", "--judge",
        "--min-preserve-ratios", "0.2", "0.05", "--round-to", "2", "1", "--ratios", "0.5", "0.2",
    )  # fmt: skip
    spaces = {(s["prune_coupled"], s["min_preserve_ratio"], s["round_to"]): s for s in found["spaces"]}
    assert len(spaces) == 8
    for streams in (False, True):
        coarse, fine = spaces[streams, 0.2, 2], spaces[streams, 0.05, 1]
        assert fine["minimum_macs_ratio"] < coarse["minimum_macs_ratio"]
        assert fine["minimum_params_ratio"] < coarse["minimum_params_ratio"]
        assert fine["networks_log10"] > coarse["networks_log10"]
    assert spaces[True, 0.2, 2]["groups"] > spaces[False, 0.2, 2]["groups"]
    assert spaces[False, 0.2, 2]["greedy"]["0.2"] is None  # 24.8% of the MACs is the least
    greedy = spaces[False, 0.05, 1]["greedy"]
    assert greedy["0.5"]["macs_ratio"] <= 0.5
    assert greedy["0.2"]["macs_ratio"] <= 0.2
    assert greedy["0.2"]["groups_on_floor"] >= greedy["0.5"]["groups_on_floor"]
    assert {"score", "top1", "widths", "groups_whole"} <= greedy["0.5"].keys()


@pytest.mark.slow
def test_the_reach_of_a_space_needs_no_training(capsys, monkeypatch):
    found = measured(
        capsys, monkeypatch, "space", "--reach", "--min-preserve-ratios", "0.2", "--round-to", "4"
    )
    (space,) = found["spaces"]
    assert "greedy" not in space
    assert 0 < space["minimum_macs_ratio"] < 0.1
    monkeypatch.setattr("sys.argv", ["benchmark", "space", "--reach", "--judge"])
    with pytest.raises(SystemExit):
        main()
    assert "--reach and --judge" in capsys.readouterr().err


def test_networks_around_an_allocation_keep_the_budget(monkeypatch):
    space = width_space(["a", "b", "c"], [40, 40, 40], round_to=1, min_preserve_ratio=0.1)
    budget = make_budget("macs", 0.5, sum, space.dense, fit="scale")
    drawn = list(islice(around((20, 30, 10), space, budget, 0.2, seed=0), 50))
    assert len(set(drawn)) == 50
    assert all(58 <= sum(widths) <= 60 for widths in drawn)
    assert np.mean(drawn, axis=0) == pytest.approx([20, 30, 10], abs=2.5)
    assert drawn == list(islice(around((20, 30, 10), space, budget, 0.2, seed=0), 50))
    monkeypatch.setattr(proxies, "DRAWS", 1000)
    assert list(around((20, 30, 10), space, budget, 0.0, seed=0)) == [(20, 30, 10)]


@pytest.mark.slow
def test_a_search_goes_on_when_a_worker_dies_and_another_hangs(capsys, monkeypatch):
    found = measured(
        capsys,
        monkeypatch,
        "soak",
        "--agents",
        "random",
        "--workers",
        "--episodes",
        "400",
        "--warm-up",
        "100",
    )["agents"]["random"]
    assert found["memory_ratio"] >= 1
    assert 0 < found["search_bytes_per_episode"][0] < 2000


def test_a_soak_that_is_too_short_to_compare_anything_is_refused():
    options = parser().parse_args(["soak", "--episodes", "500", "--warm-up", "400"])
    with pytest.raises(
        AmcError, match="--episodes is 500 with --warm-up 400; expected a warm-up of at least"
    ):
        options.run(options)


@pytest.mark.slow
def test_killed_jobs_end_identical(capsys, monkeypatch):
    found = measured(capsys, monkeypatch, "kills", "--kills", "2", "train.epochs=1", "agent.episodes=15")
    assert found["identical"] == found["kills"] == 2
    assert {"strategy.json", "search.jsonl", "model.safetensors", "agent.zip"} <= set(found["compared"])


def test_the_catalogue_of_faults_is_listed() -> None:
    options = parser().parse_args(["faults", "--list"])
    listed = options.run(options)
    assert listed["faults"] == len(set(listed["catalogue"])) >= 800


@pytest.mark.slow
def test_a_part_of_the_catalogue_goes_right() -> None:
    # A process of its own: its forks cannot train once autograd has started threads in this one.
    command = [
        sys.executable,
        "-m",
        "experiments.benchmark",
        "faults",
        "--kind",
        "checkpoints",
        "--every",
        "14",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(ended.stdout)
    assert found["wrong"] == []
    assert found["kinds"] == {"checkpoints": {"tried": 3, "right": 3, "wrong": 0}}


@pytest.mark.slow
@pytest.mark.timeout(900)  # "crash points" run 40 jobs
@pytest.mark.parametrize(
    ("kind", "every"),
    [("damaged files", 60), ("foreign folders", 60), ("crash points", 100), ("environment", 8)],
)
def test_a_part_of_the_faults_that_need_a_finished_run(kind: str, every: int) -> None:
    options = parser().parse_args(["faults", "--kind", kind, "--every", str(every), "--points", "40"])
    assert options.run(options)["wrong"] == []


@pytest.mark.slow
def test_processes_are_timed_beside_one(capsys, monkeypatch):
    asked = ("--images", "64", "--batch", "32", "--epochs", "2", "--turns", "1", "--sharded")
    found = measured(capsys, monkeypatch, "processes", *asked)
    rates = found["images_per_second"]
    assert found["ratio"] == pytest.approx(rates["together"] / rates["one"])
    assert min(rates.values()) > 0


@pytest.mark.slow
def test_transfer_leaves_out_one_network_after_the_other(capsys, monkeypatch, tmp_path):
    cwd = workspace(tmp_path)
    runs = [f"run{seed}" for seed in range(3)]
    for seed, name in enumerate(runs):
        job = (
            *TINY,
            "agent=thompson",
            "agent.episodes=30",
            "agent.prior=1",
            "budget.round_to=1",
            "stages=[train,search]",
        )
        done(*job, f"run_dir={name}", f"seed={seed}", cwd=cwd)
    monkeypatch.chdir(cwd)
    monkeypatch.syspath_prepend(cwd)
    try:
        found = measured(capsys, monkeypatch, "transfer", *runs, "--episodes", "3", "--seeds", "2")
    finally:
        sys.modules.pop("mynet", None)  # other tests have a module of this name
    assert list(found["networks"]) == [f"{name} (mynet.make)" for name in runs]
    for facts in found["networks"].values():
        assert facts["searched"][0] >= facts["greedy"]
        assert facts["searched_with_actor"][0] >= facts["zero_shot"]
    assert len(found["zero_shot_less_greedy"]) == 3


@pytest.mark.slow
def test_another_tool_prunes_to_the_budget_and_is_trained(capsys, monkeypatch, tmp_path):
    arguments = (
        "rivals", "data=fake", "data.image_size=8", "data.train=64", "data.search_val=32", "model=resnet20",
        "train.epochs=1", "finetune.epochs=1", "data.calibration=16", "budget.macs_ratio=0.6", "threads=1",
        "--folder", str(tmp_path), "--seeds", "0", "--rivals", "torch-pruning, L2",
    )  # fmt: skip
    (row,) = measured(capsys, monkeypatch, *arguments)["rows"]
    assert 0.3 < row["macs_ratio"] <= 0.6
    assert row["params_ratio"] < 1
    assert row["epochs"] == 1
    assert measured(capsys, monkeypatch, *arguments)["rows"] == [row]
    assert (tmp_path / "rows.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize("name", slow_but((*JOBS,)[::4], JOBS))
def test_the_jobs_whose_crashes_are_tried_are_not_refused(name: str) -> None:
    given = [*JOB, *JOBS[name].arguments]
    check_values(composed(*(each for each in given if not each.startswith("model="))), given)
