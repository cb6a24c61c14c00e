"""Stage ``schedule``: a network is cut in steps, with a search at each and a short training between them."""

import json
import re
import runpy
import shutil
from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file

import amc as library
from amc.budget.widths import width_space
from amc.models.state_files import load_state_dict
from amc.strategy import Strategy
from experiments.run import trackers
from tests.experiments.helpers import (
    FAKE,
    TINY,
    amc,
    done,
    interrupt,
    read_json,
    read_lines,
    refused,
    workspace,
)

STEPS = ("budget.macs_ratio=0.4", "budget.round_to=1", "schedule.ratios=[0.8,0.6,0.4]", "schedule.epochs=1")
JOB = (*TINY, *STEPS, "reward=agreement", "run_dir=run", "stages=[train,schedule,finetune,evaluate]")
RESULTS = ("strategy.json", "pruned.safetensors", "model.safetensors", "steps/1/search.jsonl")


@pytest.fixture(scope="module")
def stepped(tmp_path_factory):
    cwd = workspace(tmp_path_factory.mktemp("schedule"))

    def log(metrics, step):
        with (cwd / "logged.jsonl").open("a") as file:
            file.write(json.dumps(metrics) + "\n")

    tracker = trackers.Tracker(log, lambda summary, files, failed: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(trackers._MAKERS, "none", lambda config, folder: tracker)
        return cwd, done(*JOB, cwd=cwd).out


def test_the_searches_and_trainings_of_the_steps_are_tracked_under_their_names(stepped):
    names = {name for line in read_lines(stepped[0] / "logged.jsonl") for name in line}
    for step in ("step1", "step2", "step3"):
        assert f"{step}/search/return" in names
    assert {name for name in names if name.endswith("finetune/loss")} == {
        *("step1/finetune/loss", "step2/finetune/loss", "finetune/loss")
    }


def test_the_time_of_a_schedule_counts_once(stepped):
    assert "stage_seconds" in read_json(stepped[0] / "run/stages/schedule.json")
    assert "stage_seconds" not in read_json(stepped[0] / "run/stages/prune.json")


def folders(cwd):
    return [cwd / "run/steps" / number for number in "123"]


def test_every_step_keeps_its_share_of_the_original_network(stepped):
    cwd, out = stepped
    strategies = [Strategy.load(folder / "strategy.json") for folder in folders(cwd)]
    assert all(0 < s.macs_ratio <= ratio for s, ratio in zip(strategies, (0.8, 0.6, 0.4), strict=True))
    assert strategies[2].macs_ratio > 0.3
    for wide, narrow in pairwise(strategies):
        assert all(n <= w for n, w in zip(narrow.widths, wide.widths, strict=True))
        assert [group.dense for group in wide.groups] == [group.dense for group in narrow.groups]
    facts = read_json(cwd / "run/stages/schedule.json")["steps"]
    assert [step["folder"] for step in facts] == ["steps/1", "steps/2", "steps/3"]
    assert [step["trained_top1"] is None for step in facts] == [False, False, True]
    assert "schedule: step 2 of 3: macs <= 0.6" in out


def test_shares_of_candidates_are_of_the_original_network_at_every_step(stepped):
    for folder in folders(stepped[0]):
        strategy, lines = Strategy.load(folder / "strategy.json"), read_lines(folder / "search.jsonl")
        pruned = read_json(folder / "stages/prune.json")
        for found in (lines[strategy.provenance["episode"]], pruned):
            assert found["macs_ratio"] == strategy.macs_ratio
            assert found["params_ratio"] == strategy.params_ratio


def test_the_last_step_is_the_result_and_is_trained_on(stepped):
    cwd, _ = stepped
    last = folders(cwd)[2]
    for name in ("strategy.json", "pruned.safetensors"):
        assert (last / name).read_bytes() == (cwd / "run" / name).read_bytes()
    strategy, pruned = Strategy.load(cwd / "run/strategy.json"), read_json(cwd / "run/stages/prune.json")
    assert (pruned["macs_ratio"], pruned["params_ratio"]) == (strategy.macs_ratio, strategy.params_ratio)
    evaluated = read_json(cwd / "run/stages/evaluate.json")
    assert {"dense", "pruned", "finetuned"} <= evaluated.keys()
    assert evaluated["pruned"]["macs"] <= 0.4 * evaluated["dense"]["macs"]


def test_the_share_that_is_told_to_be_reachable_is_of_the_original_network(stepped):
    _, out = stepped
    reachable = re.findall(r"macs <= 0.[864] \((\S+) is reachable\)", out)
    assert len(reachable) == 3
    assert len(set(reachable)) == 1


def test_a_network_that_was_cut_from_another_dense_network_is_not_trained_on(stepped, tmp_path):
    cwd = shutil.copytree(stepped[0], tmp_path / "copy")
    given = ("run_dir=run", "train.epochs=3", "stages=[train,finetune]")
    refused(amc(*JOB[:-2], *given, cwd=cwd), "was cut from another dense network")


def test_floors_are_shares_of_the_original_network(stepped):
    cwd, _ = stepped
    for folder in folders(cwd):
        for group in Strategy.load(folder / "strategy.json").groups:
            assert group.kept >= 0.2 * group.dense
    cut = width_space(["a", "b"], [10, 8], round_to=1, min_preserve_ratio=0.3, whole=[20, 8])
    assert (cut.minimum, cut.dense) == ((6, 3), (10, 8))


def test_each_step_can_be_loaded(stepped):
    cwd, _ = stepped
    make = runpy.run_path(str(cwd / "mynet.py"))["make"]
    widths = []
    for folder in folders(cwd):
        network = library.load_pruned(folder, make(4))
        assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
        widths.append(network[0].out_channels + network[3].out_channels + network[5].out_channels)
    assert widths == sorted(widths, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("call", [2, 6, 10])
def test_a_stopped_schedule_ends_as_if_it_had_not_been_stopped(tmp_path, call):
    cwd = workspace(tmp_path)
    job = [*JOB[:-1], "stages=[train,schedule]", "reward=mynet.score"]
    done(*job, "run_dir=whole", cwd=cwd)
    interrupt(cwd, call)
    refused(amc(*job, "run_dir=run", cwd=cwd), "stopped", status=130)
    (cwd / "interrupt").unlink()
    done(*job, "run_dir=run", cwd=cwd)
    for name in RESULTS[:3]:
        assert (cwd / "run" / name).read_bytes() == (cwd / "whole" / name).read_bytes(), name


@pytest.mark.slow
def test_coupled_channels_are_cut_in_steps(tmp_path):
    cwd = workspace(tmp_path)
    done(
        *FAKE, *STEPS, "model=resnet20", "agent=greedy", "data.image_size=16", "train.epochs=1",
        "run_dir=run", "budget.min_preserve_ratio=0.1", "stages=[train,schedule,evaluate]", cwd=cwd,
    )  # fmt: skip
    first, last = (Strategy.load(cwd / "run/steps" / number / "strategy.json") for number in "13")
    assert last.macs_ratio <= 0.4 < first.macs_ratio <= 0.8
    assert len(first.groups) == len(last.groups)
    shares = read_json(cwd / "run/stages/evaluate.json")
    assert shares["pruned"]["macs"] / shares["dense"]["macs"] == pytest.approx(last.macs_ratio)


def test_weights_of_another_network_are_refused_before_any_work(stepped):
    cwd, _ = stepped
    save_file({"other": torch.zeros(2)}, cwd / "other.safetensors")
    asked = ("stages=[schedule]", "schedule.rewind=other.safetensors", "schedule.epochs=0")
    message = refused(amc("run_dir=run", *asked, cwd=cwd), "schedule.rewind=other.safetensors")
    assert "other" in message


@pytest.mark.slow
def test_rewinding_gives_the_channels_that_stay_their_early_weights(tmp_path):
    cwd = workspace(tmp_path)
    done(*JOB[:-1], "train.epochs=2", "stages=[train]", cwd=cwd)
    early = cwd / "early.safetensors"
    early.write_bytes((cwd / "run/dense.safetensors").read_bytes())
    done("run_dir=run", "stages=[schedule]", "schedule.epochs=0", f"schedule.rewind={early}", cwd=cwd)
    before = load_state_dict(early)["0.weight"]
    after = load_state_dict(cwd / "run/pruned.safetensors")["0.weight"]
    assert len(after) < len(before)
    assert all(any(torch.equal(row, own) for own in before) for row in after)
    record = read_json(cwd / "run/stages/prune.json")
    assert record["refit"] == f"none, the weights are rewound to {early}"
    assert (record["sequential_refit"], record["sequentially_refitted_layers"]) == (None, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["schedule.ratios=[0.5,0.7]"], "schedule.ratios is [0.5, 0.7]; expected falling shares"),
        (["schedule.ratios=[]"], "schedule.ratios is []; expected falling shares"),
        (["schedule.ratios=[0.8,0.2]"], "below the budget of 0.4; write budget.macs_ratio=0.2"),
        (["stages=[search,schedule]"], "stages has schedule and search; expected one of them"),
        (["schedule.epochs=-1"], "schedule.epochs is -1; expected 0 or more"),
        (["budget=size", "budget.size_ratio=0.1"], "of its size in float32 before anything is cut"),
        (["budget.latency_ratio=0.5"], "cuts in steps of macs, params or size"),
        (
            ["schedule.ratios=[1.5,0.6]"],
            "schedule.ratios has 1.5; expected shares of the dense cost in (0, 1]",
        ),
        (["schedule.ratios=[0.6,0]"], "schedule.ratios has 0; expected shares"),
        (["reward=accuracy_macs"], "enforces no budget, but stage schedule has to meet schedule.ratios"),
    ],
)
def test_an_impossible_schedule_is_refused_before_any_work(tmp_path, given, message):
    cwd = workspace(tmp_path)
    refused(amc(*JOB, *given, cwd=cwd), message)
    assert not (cwd / "run/dense.safetensors").exists()
