from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from amc.latency import BACKENDS, Prepared
from amc.latency.prediction.cheap_widths import TOLERANCE
from amc.runtimes.reference import eager_logits, random_batch
from experiments.run.folder import RunFolder
from experiments.run.run import open_run
from experiments.run.values import check_values
from tests.experiments.helpers import (
    TINY,
    amc,
    check_error,
    composed,
    done,
    inside,
    read_json,
    read_lines,
    refused,
    timeless,
    workspace,
)
from tests.fakes import Spinning, registered

JOB = (
    *TINY, "budget=latency", "budget.round_to=2", "profile.backend=spinning", "profile.points=2",
    "profile.rounds=2", "profile.fit=4", "profile.held_out=2", "profile.tables=tables", "reward=agreement",
    "run_dir=run",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def spinning():
    with registered(BACKENDS, spinning=Spinning()):
        yield


UPWARDS = """
from torch import nn
def make(num_classes):
    return nn.Sequential(
        nn.ConvTranspose2d(3, 8, 2, 2), nn.ReLU(), nn.ConvTranspose2d(8, num_classes, 2, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )
"""
"""A network of transposed convolutions alone."""


class Missing(Spinning):
    """A runtime that is not there."""

    def available(self) -> str:
        """Return why."""
        return "no such phone"


class Placed(Spinning):
    """A runtime on another host."""

    setup = "host attic"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = workspace(tmp_path_factory.mktemp("latency"))
    done(*JOB, "stages=[train,search,prune,report]", cwd=folder)
    return folder


def test_a_latency_budget_profiles_searches_and_verifies(finished):
    run = finished / "run"
    profile, verify, strategy = (
        read_json(run / name) for name in ("stages/profile.json", "stages/verify.json", "strategy.json")
    )
    assert profile["networks"] == 2
    assert 0 <= profile["median_error"] <= profile["worst_error"]  # how large depends on the machine's noise
    assert profile["measured_layers"] > 10
    assert profile["reused_layers"] == 0
    widths = profile["widths"]
    assert widths["extra"][str(widths["cheap_multiple"])] <= TOLERANCE
    assert verify["measured_ratio"] <= 0.5
    assert verify["widths"] == [group["kept"] for group in strategy["groups"]]
    assert strategy["budget"]["kind"] == "latency"
    assert read_json(run / "stages/prune.json")["sliced_equals_cut"]


def test_episodes_and_fronts_have_the_predicted_latency(finished):
    run = finished / "run"
    episodes = read_lines(run / "search.jsonl")
    dense = read_json(run / "stages/profile.json")["predicted_dense_ms"]
    assert all(0 < episode["latency_ms"] <= 0.5 * dense * (1 + 1e-9) for episode in episodes)
    front = read_json(run / "pareto.json")["latency"]["return"]
    costs = [point["latency_ms"] for point in front]
    assert costs == sorted(costs)
    assert (run / front[0]["strategy"]).exists()


@pytest.mark.slow
def test_layers_of_the_table_are_not_measured_again(finished):
    done(*JOB, "stages=[profile]", "run_dir=other", cwd=finished)
    profile = read_json(finished / "other/stages/profile.json")
    assert profile["measured_layers"] == 0
    assert profile["reused_layers"] == read_json(finished / "run/stages/profile.json")["measured_layers"]
    assert profile["table"] in [path.name for path in (finished / "tables").iterdir()]


@pytest.mark.slow
def test_a_network_of_transposed_convolutions_alone_has_a_latency_model(cwd):
    (cwd / "upwards.py").write_text(UPWARDS)
    out = done(*JOB, "model=upwards.make", "stages=[profile]", cwd=cwd).out
    assert "multiples of channels are cheap is not measured" in out
    assert (cwd / "run/latency_model.json").exists()
    assert "widths" not in read_json(cwd / "run/stages/profile.json")


@pytest.mark.slow
def test_the_same_table_gives_the_same_search(finished):
    model = (finished / "run/latency_model.json").read_text()
    for name in ("one", "two"):
        trained = "model.checkpoint=run/dense.safetensors"
        done(*JOB, trained, "stages=[inspect]", f"run_dir={name}", cwd=finished)
        (finished / name / "latency_model.json").write_text(model)
        done(*JOB, trained, "stages=[search]", f"run_dir={name}", cwd=finished)
        assert not (finished / name / "stages/profile.json").exists()
    assert (finished / "one/strategy.json").read_bytes() == (finished / "two/strategy.json").read_bytes()
    assert timeless(finished / "one/search.jsonl") == timeless(finished / "two/search.jsonl")


def test_a_strategy_that_measures_over_the_budget_is_repaired(finished):
    run = finished / "run"
    strategy = read_json(run / "strategy.json")
    for group in strategy["groups"]:
        group["kept"] = group["dense"]
    (run / "strategy.json").write_text(json.dumps(strategy))
    outcome = done(*JOB, "stages=[verify]", cwd=finished)
    verify = read_json(run / "stages/verify.json")
    assert verify["tries"][0]["measured_ratio"] > 0.9
    assert verify["repairs"] == len(verify["tries"]) - 1 >= 1
    assert verify["measured_ratio"] <= 0.5
    repaired = read_json(run / "strategy.json")
    assert [group["kept"] for group in repaired["groups"]] == verify["widths"]
    assert repaired["provenance"]["repaired_from"] == [group["dense"] for group in repaired["groups"]]
    assert f"after {verify['repairs']} repairs" in outcome.out
    assert not (run / "pruned.safetensors").exists()


class Stubborn(Spinning):
    """A runtime that is as slow on small networks as on large ones."""

    def prepare(self, model, input_shape, batch, threads):
        """Return a loop of one length."""
        logits = eager_logits(model, random_batch(input_shape, batch))
        return Prepared(lambda: (sum(range(10_000)), logits)[1])


def test_a_strategy_that_no_repair_has_met_the_budget_with_is_not_pruned(whole):
    strategy = (whole / "run/strategy.json").read_bytes()
    job = (*JOB, "profile.repairs=1")
    with registered(BACKENDS, spinning=Stubborn()):
        refused(amc(*job, "stages=[verify]", cwd=whole), "of the dense latency after 1 repairs, over")
    verify = read_json(whole / "run/stages/verify.json")
    assert [own["measured_ratio"] > 0.5 for own in verify["tries"]] == [True] * 2
    assert (verify["measured_ratio"], verify["repairs"]) == (verify["tries"][0]["measured_ratio"], 0)
    assert (whole / "run/strategy.json").read_bytes() == strategy
    refused(amc(*job, "stages=[prune]", cwd=whole), f"takes {verify['measured_ratio']:.4f}", "measured it")


@pytest.mark.slow
def test_several_latency_budgets_share_one_profile(finished):
    done(*JOB, "stages=[train,search]", "budget.latency_ratios=[0.5,0.7]", "run_dir=several", cwd=finished)
    several = finished / "several"
    assert (several / "stages/profile.json").exists()
    for ratio in (0.5, 0.7):
        part = several / f"latency_{ratio:.2f}"
        assert not (part / "stages/profile.json").exists()
        assert read_json(part / "stages/verify.json")["measured_ratio"] <= ratio
        assert (part / "latency_model.json").read_bytes() == (several / "latency_model.json").read_bytes()


@pytest.fixture
def whole(finished, tmp_path):
    """Return a copy of the run, with a strategy that keeps all channels as `whole.json`."""
    folder = workspace(tmp_path / "whole")
    shutil.copytree(finished / "run", folder / "run")
    strategy = read_json(folder / "run/strategy.json")
    for group in strategy["groups"]:
        group["kept"] = group["dense"]
    (folder / "whole.json").write_text(json.dumps(strategy))
    return folder


@pytest.mark.slow
def test_prune_takes_what_verify_has_repaired(whole):
    done(*JOB, "strategy=whole.json", "stages=[verify,prune]", cwd=whole)
    widths = read_json(whole / "run/stages/verify.json")["widths"]
    assert [group["kept"] for group in read_json(whole / "run/strategy.json")["groups"]] == widths
    assert widths != [group["dense"] for group in read_json(whole / "whole.json")["groups"]]
    assert (whole / "run/pruned.safetensors").exists()
    done("run_dir=run", "stages=[prune]", cwd=whole)  # the file is no longer remembered
    assert [group["kept"] for group in read_json(whole / "run/strategy.json")["groups"]] == widths


@pytest.mark.slow
def test_a_search_replaces_a_strategy_that_was_given_before(whole):
    job = (*JOB, "budget=macs", "budget.macs_ratio=1.0")
    done(*job, "strategy=whole.json", "stages=[prune]", cwd=whole)
    done("run_dir=run", "budget.macs_ratio=0.5", "strategy=null", "stages=[search,prune]", cwd=whole)
    searched = read_json(whole / "run/strategy.json")
    assert searched["groups"] != read_json(whole / "whole.json")["groups"]
    done("run_dir=run", "stages=[prune]", cwd=whole)
    assert read_json(whole / "run/strategy.json") == searched


@pytest.mark.slow
def test_what_verify_has_measured_counts_for_prune(whole):
    model = read_json(whole / "run/latency_model.json")
    model["factors"] = {"constant": 1.0}  # predicts that no network is faster than the dense one
    (whole / "run/latency_model.json").write_text(json.dumps(model))
    done(*JOB, "stages=[verify,prune]", cwd=whole)
    verify = read_json(whole / "run/stages/verify.json")
    assert verify["predicted_ratio"] == 1.0
    assert verify["measured_ratio"] <= 0.5
    (whole / "run/stages/verify.json").unlink()
    refused(amc(*JOB, "stages=[prune]", cwd=whole), "1.0000 of the dense latency", "another budget")


def test_a_latency_of_another_device_repairs_nothing_and_does_not_count(whole, caplog):
    model = read_json(whole / "run/latency_model.json")
    here, model["target"]["device"] = model["target"]["device"], "A laptop"
    (whole / "run/latency_model.json").write_text(json.dumps(model))
    outcome = done(*JOB, "strategy=whole.json", "stages=[verify]", cwd=whole)
    assert f"measured on {here}, version 1, but latency_model.json is about A laptop" in outcome.out
    verify, strategy = read_json(whole / "run/stages/verify.json"), read_json(whole / "run/strategy.json")
    assert (verify["on"]["device"], verify["repairs"]) == (here, 0)
    assert verify["widths"] == [group["dense"] for group in strategy["groups"]]
    with inside(whole):
        run = open_run(composed(*JOB, "stages=[prune]"), Path("run"))
        assert run.measured_latency(tuple(verify["widths"])) is None
    assert (
        f"does not count: it was measured with device {here}, the latency model has device A" in caplog.text
    )


def test_a_latency_that_was_measured_over_the_budget_is_not_pruned(whole):
    done(*JOB, "stages=[verify]", cwd=whole)
    verify = read_json(whole / "run/stages/verify.json")
    (whole / "run/stages/verify.json").write_text(json.dumps({**verify, "measured_ratio": 0.52}))
    refused(amc(*JOB, "stages=[prune]", cwd=whole), "0.5200 of the dense latency", "[verify,prune]")


@pytest.mark.slow
def test_a_latency_of_another_host_does_not_count(whole):
    done(*JOB, "stages=[verify]", cwd=whole)
    assert read_json(whole / "run/stages/verify.json")["on"]["setup"] == ""
    model = read_json(whole / "run/latency_model.json")
    model["target"]["setup"] = "host board"
    (whole / "run/latency_model.json").write_text(json.dumps(model))
    told = ("measured with host board", "asks for host attic", "stages=[profile] again")
    with registered(BACKENDS, spinning=Placed()):
        refused(amc(*JOB, "stages=[prune]", cwd=whole), *told)


@pytest.mark.slow
def test_verify_repairs_a_strategy_of_other_multiples(whole):
    strategy = read_json(whole / "whole.json")
    for group in strategy["groups"]:
        group["kept"] = group["dense"] - 1
    (whole / "whole.json").write_text(json.dumps(strategy))
    done(*JOB, "strategy=whole.json", "stages=[verify]", cwd=whole)
    assert read_json(whole / "run/stages/verify.json")["measured_ratio"] <= 0.5


@pytest.mark.slow
def test_all_budgets_are_checked_before_the_first_is_searched(finished):
    trained = "model.checkpoint=run/dense.safetensors"
    budgets = (trained, "budget.latency_ratios=[0.7,0.001]", "run_dir=hopeless")
    refused(amc(*JOB, *budgets, "stages=[search]", cwd=finished), "budget.latency_ratio is 0.001")
    assert (finished / "hopeless/stages/profile.json").exists()
    assert not (finished / "hopeless/latency_0.70").exists()


def test_of_budgets_of_several_kinds_those_of_the_latency_are_verified(cwd):
    lists = ("budget.latency_ratio=null", "budget.macs_ratios=[0.6]", "budget.latency_ratios=[0.7]")
    for asked in ("search,prune", "search,verify,prune"):
        config = composed(*JOB, *lists, f"stages=[train,{asked}]")
        with inside(cwd):
            check_values(config)
            run = open_run(config, Path("run"))
            run.folder.latency_model.touch()  # as stage profile has written it
            parts = [run.for_budget(ratios, Path("part")) for ratios in ({"macs": 0.6}, {"latency": 0.7})]
            found = [part.stages for part in parts]
        assert found == [["search", "prune"], ["search", "verify", "prune"]]


FINER = ("budget.round_to=1", "budget.min_preserve_ratio=0.05")
"""Allows narrower networks than ``JOB``."""


def test_a_model_of_wider_networks_alone_is_not_used(finished):
    told = ("latency_model.json was profiled from", "stages=[profile] again")
    refused(amc(*JOB, *FINER, "stages=[verify]", cwd=finished), *told)
    with inside(finished):
        found = [
            open_run(composed(*JOB, *changed, "stages=[search]"), Path("run")).stages
            for changed in ((), FINER, ("budget.min_preserve_ratio=0.5",))
        ]
    assert found == [["search", "verify"], ["profile", "search", "verify"], ["search", "verify"]]


@pytest.mark.slow
def test_narrower_networks_are_profiled_before_they_are_searched(whole, finished):
    former = read_json(whole / "run/latency_model.json")
    shutil.copytree(finished / "tables", whole / "tables")
    done(*JOB, *FINER, "stages=[search]", cwd=whole)
    model, profile = (
        read_json(whole / "run" / name) for name in ("latency_model.json", "stages/profile.json")
    )
    assert model["layers"][0]["outputs"][0] < former["layers"][0]["outputs"][0]
    assert profile["reused_layers"] > 0


def test_bad_input_is_refused(finished):
    base = composed(*JOB, "stages=[search]")
    for override, parts in {
        "profile.backend=tensorflow": ["tensorflow", "onnxruntime"],
        "budget.latency_ratio=0.001": ["budget.latency_ratio is 0.001", "raise the budget"],
        "budget.latency_ratio=null": ["budget.latency_ratio is None"],
        "profile.points=1": ["profile.points is 1", "at least 2"],
        "profile.rounds=0": ["profile.rounds is 0", "at least 1"],
    }.items():
        message = check_error(base, override, cwd=finished)
        assert all(part in message for part in parts), (override, message)
    batch = amc(*JOB, "stages=[search]", "profile.batch=2", cwd=finished)
    refused(batch, "batch 2", "batch 1", "stages=[profile] again")
    refused(
        amc(*JOB, "budget=macs", "stages=[verify]", cwd=finished), "there is none; give budget.latency_ratio"
    )


def test_a_killed_job_goes_on_with_its_profile(whole):
    stages = "stages=[profile,inspect]"

    def profiled(*own: str) -> bool:
        with inside(whole):
            return open_run(composed(*JOB, stages, *own), Path("run")).profiled

    folder, model = RunFolder(whole / "run"), whole / "run/latency_model.json"
    assert not profiled()
    folder.note_begun("profile")
    assert not profiled()  # it was killed in the profile
    folder.note_begun("inspect")
    assert profiled()
    changes = (["profile.rounds=3"], ["profile.batch=2"], ["seed=1"], FINER)
    assert [profiled(*each) for each in changes] == [False] * len(changes)
    former = model.read_bytes()
    out = done(*JOB, stages, cwd=whole).out
    assert "profile: an earlier command, which did not end, has measured latency_model.json" in out
    assert model.read_bytes() == former
    assert not profiled()  # the job has ended


def test_a_profile_of_one_of_several_budgets_is_taken_up(whole):
    folder = RunFolder(whole / "run")
    folder.note_begun("profile")
    RunFolder.made(whole / "run/latency_0.50").note_begun("search")
    with inside(whole):
        assert open_run(composed(*JOB, "stages=[profile,search]"), Path("run")).profiled


@pytest.mark.slow
def test_a_runtime_that_is_named_by_its_path_has_a_latency_model_of_its_own(whole):
    path = "tests.fakes.Spinning"
    done(*JOB, f"profile.backend={path}", "stages=[profile]", cwd=whole)
    profile = read_json(whole / "run/stages/profile.json")
    assert (profile["target"]["runtime"], profile["reused_layers"]) == (path, 0)
    assert path in profile["table"]
    with inside(whole):
        run = open_run(composed(*JOB, f"profile.backend={path}"), Path("run"))
        assert run.problem.latency.described()["backend"] == path


@pytest.mark.slow
def test_a_profile_that_is_asked_for_replaces_the_model(finished):
    other = shutil.copytree(finished / "run", finished / "anew")
    job = (*JOB, "run_dir=anew", "profile.batch=2", "budget.latency_ratio=0.6")
    text = (other / "latency_model.json").read_text()
    former = json.loads(text)
    with registered(BACKENDS, spinning=Missing()):
        refused(amc(*job, "stages=[profile,search]", cwd=finished), "cannot be measured here: no such phone")
    assert (other / "latency_model.json").read_text() == text
    done(*job, "stages=[profile,search]", cwd=finished)
    model = read_json(other / "latency_model.json")
    assert (former["target"]["batch"], model["target"]["batch"]) == (1, 2)
    dense = read_json(other / "stages/profile.json")["predicted_dense_ms"]
    assert all(episode["latency_ms"] <= 0.6 * dense * 1.001 for episode in read_lines(other / "search.jsonl"))
    assert max(episode["latency_ms"] for episode in read_lines(other / "search.jsonl")) > 0.4 * dense


@pytest.mark.slow
def test_a_model_of_another_network_is_refused(finished):
    text = (finished / "run/latency_model.json").read_text()
    data = json.loads(text)
    (finished / "run/latency_model.json").write_text(json.dumps({**data, "layers": data["layers"][1:]}))
    refused(amc(*JOB, "stages=[verify]", cwd=finished), "another network")
    (finished / "run/latency_model.json").write_text(text[:100])
    refused(amc(*JOB, "stages=[verify]", cwd=finished), "is damaged", "stages=[profile]")
    (finished / "run/latency_model.json").write_text(text)
