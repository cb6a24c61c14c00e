from __future__ import annotations

import math
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from amc import Strategy, load_pruned
from amc.export import FORMATS, Format
from experiments.config.agents import ALLOCATIONS
from tests.experiments.helpers import (
    FAKE,
    MYNET,
    SMALL,
    TINY,
    amc,
    artifacts,
    done,
    read_json,
    read_lines,
    refused,
    timeless,
    workspace,
)
from tests.fakes import registered

ARTIFACTS = {
    ".hydra/config.yaml", ".hydra/overrides.yaml", "provenance.json", "search.jsonl", "strategy.json",
    "model.safetensors", "exports/model.onnx", "report.json", "report.html",
}  # fmt: skip


DROPS = """
from torch import nn
from torch.nn.functional import dropout
from mynet import make

class Net(nn.Module):
    def __init__(self, num_classes, rate):
        super().__init__()
        self.body, self.rate = make(num_classes), rate

    def forward(self, images):
        return self.body[9](dropout(self.body[:9](images), self.rate, self.training))
"""


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of the main job on a network of the zoo; its tests leave it as it is."""
    cwd = tmp_path_factory.mktemp("full")
    done(*SMALL, "model=resnet20", "run_dir=run", cwd=cwd)
    return cwd / "run"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The main job up to the fine-tuning on a user's network; its tests work on copies."""
    cwd = workspace(tmp_path_factory.mktemp("tiny"))
    done(*TINY, "run_dir=run", "stages=[train,search,prune,finetune]", cwd=cwd)
    return cwd


@pytest.fixture
def again(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run, ``run`` in its own current directory."""
    return shutil.copytree(tiny, tmp_path / "again")


def search(cwd: Path, *overrides: str) -> list[dict[str, Any]]:
    stages = [] if any(word.startswith("stages=") for word in overrides) else ["stages=[search]"]
    done("run_dir=run", *stages, *overrides, cwd=cwd)
    return read_lines(cwd / "run/search.jsonl")


# --- the main job


def test_all_artifacts_are_there(full: Path) -> None:
    assert {name for name in (*ARTIFACTS, "agent.zip") if not (full / name).is_file()} == set()
    assert zipfile.is_zipfile(full / "agent.zip")
    assert "<html" in (full / "report.html").read_text()


def test_report_has_all_three_networks(full: Path) -> None:
    report = read_json(full / "report.json")
    for name in ("dense", "pruned", "finetuned"):
        assert 0 <= report[name]["top1"] <= 100
        assert (name == "dense") == ("divergence" not in report[name])
        assert report[name].get("divergence", 0) >= 0
    assert report["pruned"]["macs"] == report["finetuned"]["macs"] < report["dense"]["macs"]
    assert report["pruned"]["params"] == report["finetuned"]["params"] < report["dense"]["params"]
    assert report["macs_ratio"] == pytest.approx(report["pruned"]["macs"] / report["dense"]["macs"])
    assert 0 < report["macs_ratio"] <= 0.5
    weights = load_file(full / "model.safetensors")
    count = sum(v.numel() for k, v in weights.items() if k.endswith((".weight", ".bias")))
    assert report["finetuned"]["params"] == count


def test_report_has_the_latency(full: Path) -> None:
    report = read_json(full / "report.json")
    dense, final = report["dense"]["latency_ms"]["torch"], report["finetuned"]["latency_ms"]["torch"]
    assert 0 < final < 1000
    assert 0 < dense < 1000
    assert report["speedup"]["torch"] == pytest.approx(dense / final, rel=0.5)


def test_report_has_the_search(full: Path) -> None:
    report, episodes = read_json(full / "report.json"), read_lines(full / "search.jsonl")
    found = report["search"]
    assert (found["agent"], found["episodes"], report["seed"]) == ("ddpg", 4, 0)
    assert found["best_return"] == max(line["return"] for line in episodes)
    assert found["evaluations"] == len({tuple(line["widths"]) for line in episodes})
    assert found["seconds"] > 0


def test_every_episode_is_written_and_within_the_budget(full: Path) -> None:
    episodes = read_lines(full / "search.jsonl")
    assert [line["episode"] for line in episodes] == [0, 1, 2, 3]
    assert [line["phase"] for line in episodes] == ["warmup", "warmup", "search", "search"]
    assert all(0 < line["macs_ratio"] <= 0.5 for line in episodes)


def test_strategy_is_that_of_the_best_episode(full: Path) -> None:
    data, strategy = read_json(full / "strategy.json"), Strategy.load(full / "strategy.json")
    best = max(read_lines(full / "search.jsonl"), key=lambda line: line["return"])
    assert data["_version"] == 1
    assert list(strategy.widths) == best["widths"]
    assert strategy.macs_ratio == best["macs_ratio"]
    assert data["provenance"]["episode"] == best["episode"]


def test_provenance_names_its_origin(full: Path) -> None:
    facts = read_json(full / "provenance.json")
    assert facts["commit"] is None or re.fullmatch(r"[0-9a-f]{40}(\+dirty)?", facts["commit"])
    assert facts["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert facts["device"]["kind"] in ("cpu", "cuda")
    assert facts["data"]["name"] == "fake"
    assert re.fullmatch(r"[0-9a-f]{64}", facts["data"]["fingerprint"])
    assert "model=resnet20" in facts["command"]


def test_the_loaded_network_equals_the_exported_one(full: Path) -> None:
    images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = load_pruned(full)(images).detach().numpy()
    session = onnxruntime.InferenceSession(full / "exports/model.onnx", providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_a_run_is_loaded_in_inference_mode_too(full: Path) -> None:
    with torch.inference_mode():
        model = load_pruned(full)
    assert list(model.state_dict()) == list(load_pruned(full).state_dict())


# --- an old run taken up again


@pytest.mark.slow
def test_formats_that_are_not_there_do_not_stop_the_others(again: Path) -> None:
    absent = Format("model.mlpackage", ("no_such_package",), FORMATS["coreml"].write)
    with registered(FORMATS, coreml=absent):
        out = done(
            "run_dir=run", "stages=[export]", "export.formats=[coreml,onnx,torch_export]", cwd=again
        ).out
    assert "coreml is left out: not installed: no_such_package" in out
    facts = read_json(again / "run/stages/export.json")
    assert [file["format"] for file in facts["files"]] == ["onnx", "torch_export"]
    assert all(file["max_abs_difference"] < 1e-4 for file in facts["files"])
    assert facts["left_out"] == {"coreml": "not installed: no_such_package"}
    assert (again / "run" / facts["files"][1]["file"]).stat().st_size == facts["files"][1]["bytes"]


@pytest.mark.slow
def test_serving_records_how_busy_the_machine_is(again: Path) -> None:
    out = done(
        "run_dir=run", "stages=[serve]", "serve.backend=torch", "serve.rate=50", "serve.seconds=0.2",
        "serve.slices=2", cwd=again,
    ).out  # fmt: skip
    assert "serve: torch, 50 requests/s of 1, 0.2 s each" in out
    facts = read_json(again / "run/stages/serve.json")
    for name in ("dense", "pruned"):
        assert f"serve: {name} CPU" in out
        assert facts["served"][name]["requests"] == 10
        assert 0 < facts["served"][name]["cpu_utilisation"] < 2


def test_serving_takes_a_runtime_of_this_machine(again: Path) -> None:
    refused(amc("run_dir=run", "stages=[serve]", "serve.backend=ssh", cwd=again), "serve.backend is ssh")
    refused(amc("run_dir=run", "stages=[serve]", "serve.backend=tensorrt", cwd=again), "cannot run here: ")


@pytest.mark.slow
def test_the_benchmark_records_throughput_and_memory(again: Path) -> None:
    out = done(
        "run_dir=run", "stages=[benchmark]", "latency.backends=[onnxruntime,adb]",
        "latency.throughput_batch=4", cwd=again,
    ).out  # fmt: skip
    assert "adb is left out: latency.adb.runner is not set" in out
    facts = read_json(again / "run/stages/benchmark.json")
    assert [(found["backend"], found["batch"]) for found in facts["runtimes"]] == [
        ("onnxruntime", 1),
        ("adb", 1),
    ]
    assert facts["throughput"][0]["batch"] == 4
    assert facts["throughput"][0]["comparison"]["dense"]["median_ms"] > 0
    assert set(facts["runtimes"][0]["peak_memory_bytes"]) == {"dense", "pruned"}


def test_no_format_at_all_is_an_error(again: Path) -> None:
    refused(amc("run_dir=run", "stages=[export]", "export.tolerance=0", cwd=again), "differs from eager")


def test_a_single_stage_uses_the_runs_own_model_and_data(again: Path) -> None:
    done("run_dir=run", "stages=[export]", cwd=again)
    session = onnxruntime.InferenceSession(
        again / "run/exports/model.onnx", providers=["CPUExecutionProvider"]
    )
    assert session.get_inputs()[0].shape[1:] == [3, 8, 8]
    assert session.get_outputs()[0].shape[1:] == [4]
    facts = read_json(again / "run/provenance.json")
    assert facts["data"]["name"] == "fake"
    assert "model=mynet.make" in facts["command"]


def test_the_configuration_of_an_old_run_can_be_shown(again: Path) -> None:
    outcome = done("--cfg", "job", "run_dir=run", cwd=again)
    assert "name: mynet.make" in outcome.out


def test_a_single_stage_leaves_the_rest_of_the_run_as_it_was(again: Path) -> None:
    before = artifacts(again / "run")
    done("run_dir=run", "stages=[evaluate]", cwd=again)
    after = artifacts(again / "run")
    assert after.pop("stages/evaluate.json")
    assert after == before


def test_a_run_continues_after_any_single_stage(again: Path) -> None:
    done("run_dir=run", "stages=[evaluate]", cwd=again)
    (again / "run/search.jsonl").unlink()
    done("run_dir=run", cwd=again)
    assert (again / "run/search.jsonl").exists()


def test_a_new_pruning_is_not_reported_as_fine_tuned(again: Path) -> None:
    done("run_dir=run", "stages=[prune,evaluate]", cwd=again)
    assert set(read_json(again / "run/stages/evaluate.json")) >= {"dense", "pruned"}
    assert "finetuned" not in read_json(again / "run/stages/evaluate.json")


def test_a_search_without_learning_leaves_no_agent_of_an_earlier_one(again: Path) -> None:
    search(again, "agent=random")
    assert not (again / "run/agent.zip").exists()


# --- rewards and budgets


def test_budget_of_parameters(again: Path) -> None:
    episodes = search(again, "budget=params", "budget.params_ratio=0.4")
    assert all(0 < line["params_ratio"] <= 0.4 for line in episodes)
    assert read_json(again / "run/strategy.json")["budget"]["kind"] == "params"


@pytest.mark.slow
def test_accuracy_macs_has_no_hard_budget(again: Path) -> None:
    episodes = search(again, "reward=accuracy_macs", "budget.macs_ratio=0.15", "agent.episodes=8")
    assert max(line["macs_ratio"] for line in episodes) > 0.15
    first = episodes[0]
    assert first["return"] == pytest.approx(-(1 - first["top1"] / 100) * math.log(first["macs"]))
    done("run_dir=run", "stages=[prune]", cwd=again)
    assert read_json(again / "run/strategy.json")["budget"]["enforced"] is False


def test_agreement(again: Path) -> None:
    episodes = search(again, "reward=agreement")
    assert [line["return"] for line in episodes] == [line["agreement"] for line in episodes]
    assert all(line["return"] <= 0 for line in episodes)


def test_a_reward_of_the_users_own(again: Path) -> None:
    (again / "myreward.py").write_text("def narrow(evaluation):\n    return -evaluation.widths[0]\n")
    episodes = search(again, "reward=myreward.narrow")
    assert [line["return"] for line in episodes] == [-line["widths"][0] for line in episodes]
    assert read_json(again / "run/strategy.json")["provenance"]["reward"] == "myreward.narrow"


# --- agents


@pytest.mark.slow
def test_a_baseline_writes_the_same_artifacts(cwd: Path) -> None:
    done(*TINY, "agent=random", "run_dir=run", cwd=cwd)
    assert {name for name in ARTIFACTS if not (cwd / "run" / name).is_file()} == set()
    assert not (cwd / "run/agent.zip").exists()
    found = read_json(cwd / "run/report.json")["search"]
    assert (found["agent"], found["episodes"]) == ("random", 4)
    assert len(read_lines(cwd / "run/search.jsonl")) == 4


@pytest.mark.slow
def test_allocations_are_one_episode_that_is_pruned(again: Path) -> None:
    for agent in ALLOCATIONS:
        assert len(search(again, f"agent={agent}", "stages=[search,prune]")) == 1
        assert not (again / "run/agent.zip").exists()
        found = read_json(again / "run/stages/search.json")
        assert (found["agent"], found["episodes"]) == (agent, 1)
        assert 0 < read_json(again / "run/stages/prune.json")["macs_ratio"] <= 0.5


def test_one_seed_one_result(tiny: Path, tmp_path: Path) -> None:
    runs = {}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        cwd = shutil.copytree(tiny, tmp_path / name)
        (cwd / "run/evaluations.jsonl").unlink()
        search(cwd, f"seed={seed}", "reward=agreement", "agent.episodes=12", "budget.round_to=1")
        runs[name] = cwd / "run"
    assert (runs["a"] / "strategy.json").read_bytes() == (runs["b"] / "strategy.json").read_bytes()
    assert timeless(runs["a"] / "search.jsonl") == timeless(runs["b"] / "search.jsonl")
    requested = [
        [line["requested"] for line in read_lines(runs[name] / "search.jsonl")] for name in ("a", "c")
    ]
    assert requested[0] != requested[1]


# --- other stages


def test_compare_judges_both_at_the_same_budget(again: Path) -> None:
    done("run_dir=run", "stages=[compare,report]", cwd=again)
    facts = read_json(again / "run/report.json")["compare"]
    assert facts["strategy"]["widths"] == list(Strategy.load(again / "run/strategy.json").widths)
    assert facts["uniform"]["widths"] != [8, 16, 8]
    for name in ("strategy", "uniform"):
        assert 0 < facts[name]["macs_ratio"] <= 0.5
        assert 0 <= facts[name]["top1_pruned"] <= 100
        assert 0 <= facts[name]["top1_finetuned"] <= 100


def test_evaluate_scores_every_existing_network(again: Path) -> None:
    outcome = done("run_dir=run", "stages=[evaluate]", cwd=again)
    assert re.findall(r"evaluate: (\w+) \d+\.\d\d% on 32 test images", outcome.out) == [
        "dense", "pruned", "finetuned",
    ]  # fmt: skip


def test_inspect_lists_the_groups_of_an_untrained_network(tmp_path: Path) -> None:
    outcome = done(*TINY, "run_dir=run", "stages=[inspect]", cwd=workspace(tmp_path))
    assert "    read by 5" in outcome.out.splitlines()
    assert re.search(r"^left whole .*\n9 +4  its channels are the network's output$", outcome.out, re.M)
    facts = read_json(tmp_path / "run/stages/inspect.json")
    assert [(row["name"], row["width"]) for row in facts["groups"]] == [("0", 8), ("3", 16), ("5", 8)]
    assert [row["name"] for row in facts["unprunable"]] == ["9"]
    assert facts["dense_macs"] == 8 * 27 * 64 + 16 * 72 * 16 + 8 * 144 * 16 + 8 * 4
    assert (facts["other_macs"], facts["classifies"]) == (0, True)
    assert facts["prunable_macs_share"] == 1.0
    assert not (tmp_path / "run/dense.safetensors").exists()


@pytest.mark.slow
def test_inspect_names_coupled_layers_and_constant_macs(tmp_path: Path) -> None:
    own = ("data.image_size=32", "run_dir=run", "stages=[inspect]")
    outcome = done(*FAKE, "model=resnet20", *own, cwd=tmp_path)
    made = [line for line in outcome.out.splitlines() if line.startswith("    made by conv1, layer1.0.conv2")]
    assert len(made) == 1
    outcome = done(*FAKE, "model=mynet.Functional", *own, cwd=workspace(tmp_path / "other"))
    facts = read_json(tmp_path / "other/run/stages/inspect.json")
    assert facts["other_macs"] == 4 * 4
    assert "of the MACs are outside of Conv2d and Linear layers: constant" in outcome.out


def test_a_network_of_several_outputs_is_searched_by_agreement(tmp_path: Path) -> None:
    cwd, own = workspace(tmp_path), {}
    exec(MYNET, own)
    torch.manual_seed(0)
    torch.save(own["Pair"](4).state_dict(), cwd / "pair.pth")
    job = (*SMALL, "model=mynet.Pair", "model.checkpoint=pair.pth", "reward=agreement", "run_dir=run")
    outcome = done(*job, "stages=[train,search,prune]", cwd=cwd)
    assert "returns no logits" in outcome.out
    assert re.search(r"found agreement -\d", outcome.out)
    lines = read_lines(cwd / "run/search.jsonl")
    assert all(line["agreement"] < 0 for line in lines)
    classes, images = load_pruned(cwd / "run", own["Pair"](4))(torch.ones(2, 3, 8, 8))
    assert classes.shape == (2, 4)
    assert torch.equal(images, torch.ones(2, 3, 8, 8))


def test_a_checkpoint_of_a_wrapped_network_replaces_the_training(tiny: Path, tmp_path: Path) -> None:
    cwd = workspace(tmp_path)
    weights = load_file(tiny / "run/dense.safetensors")
    torch.save({"state_dict": {f"module.{key}": value for key, value in weights.items()}}, cwd / "dense.pth")
    stages = "stages=[train,search,prune,evaluate]"
    done(*TINY, "model.checkpoint=dense.pth", "run_dir=run", stages, cwd=cwd)
    assert read_json(cwd / "run/stages/train.json")["trained_here"] is False
    kept = load_file(cwd / "run/dense.safetensors")
    assert kept.keys() == weights.keys()
    assert all(torch.equal(kept[key], weights[key]) for key in weights)
    assert (cwd / "run/strategy.json").read_bytes() == (tiny / "run/strategy.json").read_bytes()


def test_a_training_starts_from_given_weights(tiny: Path, tmp_path: Path) -> None:
    cwd = workspace(tmp_path)
    start = f"model.start={tiny / 'run/dense.safetensors'}"
    told = done(*TINY, start, "train.epochs=0", "run_dir=same", "stages=[train]", cwd=cwd)
    assert "starts from" in told.out
    given, kept = (load_file(place / "dense.safetensors") for place in (tiny / "run", cwd / "same"))
    assert all(torch.equal(kept[key], given[key]) for key in given)
    assert read_json(cwd / "same/stages/train.json")["starts_trained"] is True
    judged = ("train.until=0.99", "train.best=true", "data.num_classes=5")
    more = done(*TINY, start, *judged, "run_dir=more", "stages=[train]", cwd=cwd)
    assert "new are 9.weight, 9.bias" in more.out
    assert "not the best" not in more.out + more.err
    assert read_json(cwd / "more/stages/train.json")["starts_trained"] is False
    until = amc(*TINY, start, "train.until=0.99", "run_dir=until", "stages=[train]", cwd=cwd)
    refused(
        until, "train.until=0.99 is judged on held-out images, but model.start gives the dense network all"
    )
    both = amc(*TINY, start, "model.checkpoint=x.pth", "run_dir=both", "stages=[train]", cwd=cwd)
    refused(both, "model.start=", "model.checkpoint")


def test_other_arguments_of_a_network_train_it_anew(tmp_path: Path) -> None:
    """They change no tensor that the training starts from, and nothing that a module prints."""
    cwd = workspace(tmp_path)
    (cwd / "drops.py").write_text(DROPS)
    job = (*TINY, "model=drops.Net", "run_dir=run", "stages=[train]")
    weights = []
    for rate in (0.0, 0.5, 0.5):
        done(*job, f"+model.kwargs.rate={rate}", cwd=cwd)
        weights.append((cwd / "run/dense.safetensors").read_bytes())
    assert weights[0] != weights[1] == weights[2]


def test_a_strategy_of_another_run_is_pruned_and_judged(full: Path, tiny: Path, tmp_path: Path) -> None:
    cwd = workspace(tmp_path)
    strategy = tiny / "run/strategy.json"
    done(*TINY, "seed=5", f"strategy={strategy}", "run_dir=run", "stages=[train,prune,evaluate]", cwd=cwd)
    assert (cwd / "run/strategy.json").read_bytes() == strategy.read_bytes()
    facts = read_json(cwd / "run/stages/evaluate.json")
    assert facts["pruned"]["macs"] / facts["dense"]["macs"] == Strategy.load(strategy).macs_ratio


@pytest.mark.slow
def test_chosen_images_are_those_of_the_search(tmp_path: Path) -> None:
    cwd = workspace(tmp_path)
    chosen = ("data.select=herding", "data.select_calibration=8", "data.select_search_val=12")
    job = (*TINY, "run_dir=run", "stages=[train,search,prune]", "reward=agreement")
    done(*job, *chosen, cwd=cwd)
    first = timeless(cwd / "run/evaluations.jsonl")
    done("run_dir=run", "data.select=margin", cwd=cwd)
    assert timeless(cwd / "run/evaluations.jsonl") != first, "the evaluations are of other images"
    outcome = amc("run_dir=run", "data.select_search_val=500", cwd=cwd)
    refused(outcome, "data.select_search_val is 500, but data.search_val gives 32 images")
