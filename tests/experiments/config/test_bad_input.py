from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from experiments.run.check import _lacking
from experiments.run.folder import RunFolder
from tests.experiments.helpers import (
    FAKE,
    SMALL,
    TINY,
    Outcome,
    amc,
    artifacts,
    check_error,
    composed,
    done,
    read_json,
    read_lines,
    refused,
    workspace,
)
from tests.params import slow


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A current directory with a run that is searched and pruned."""
    cwd = workspace(tmp_path_factory.mktemp("ready"))
    done(*TINY, "run_dir=run", "stages=[train,search,prune]", cwd=cwd)
    return cwd


@pytest.fixture
def old(ready: Path, tmp_path: Path) -> Path:
    return shutil.copytree(ready, tmp_path / "old")


# --- on a finished run: refused, and all that it holds stays as it was


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["stages=[exprot]"], ["exprot", "'export'", "benchmark"]),
        (["stages=[inspect]", "model=resnet21"], ["resnet21", "resnet20"]),
        slow(["stages=[inspect]", "model=torch.nn.Nothing"], ["torch.nn.Nothing"]),
        slow(["stages=[inspect]", "data=cifar11"], ["cifar11", "cifar10"]),
        slow(["stages=[search]", "agent=ppo"], ["ppo", "ddpg"]),
        (["stages=[search]", "agent.name=ppo", "agent=random"], ["ppo", "ddpg", "random", "uniform"]),
        (["stages=[search]", "reward=acuracy"], ["acuracy", "'accuracy'"]),
        slow(["stages=[search]", "tracker=wnadb"], ["wnadb", "wandb"]),
        slow(["stages=[search]", "tracker.name=wnadb"], ["wnadb", "wandb", "tensorboard"]),
        (["stages=[search]", "budget.macs_ration=0.5"], ["macs_ration"]),
        (["stages=[search]", "budget.macs_ratio=0"], ["budget.macs_ratio is 0", "(0, 1]"]),
        (["stages=[benchmark]", "latency.backends=[tflite]"], ["tflite", "onnxruntime"]),
        (["stages=[prune]", "strategy=nowhere.json"], ["nowhere.json"]),
        (["stages=[prune]", "strategy=mynet.py"], ["mynet.py", "JSON"]),
        (["stages=[prune]", "budget.macs_ratio=0.2", "strategy=run/strategy.json"], ["another budget"]),
        (["stages=[evaluate]", "data.num_classes=5"], ["num_classes"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("stages=") else "",
)
def test_a_bad_value_is_refused_in_one_line(old: Path, overrides: list[str], parts: list[str]) -> None:
    before = artifacts(old / "run")
    refused(amc("run_dir=run", *overrides, cwd=old), *parts)
    assert artifacts(old / "run") == before


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("agent=evolutoin", ["unknown agent 'evolutoin'", "did you mean 'evolution'?"]),
        ("experiment=resnet56", ["unknown experiment 'resnet56'", "did you mean 'resnet56_cifar10'?"]),
        ("agent.epsodes=3", ["unknown key 'agent.epsodes'", "did you mean 'agent.episodes'?"]),
        ("data.root=x", ["the chosen data has no key 'data.root'", "data.kwargs.root=..."]),
        ("budget.macs_ration=0.3", ["did you mean 'budget.macs_ratio'?"]),
        ("agnet=greedy", ["unknown key 'agnet'", "did you mean 'agent'?"]),
        ("modle=resnet20", ["unknown key 'modle'", "did you mean 'model'?"]),
        ("bugdet=params", ["unknown key 'bugdet'", "did you mean 'budget'?"]),
        ("sead=1", ["unknown key 'sead'", "did you mean 'seed'?"]),
        ("+agent.warmup=3", ["'agent.warmup'", "did you mean 'agent.warmup_episodes'?"]),
        ("seed=-1", ["seed is -1"]),
    ],
)
def test_a_mistyped_word_gets_the_nearest_and_leaves_no_folder(
    tmp_path: Path, override: str, parts: list[str]
) -> None:
    message = refused(amc(*FAKE, override, "run_dir=new", cwd=tmp_path), *parts)
    assert "base_" not in message
    assert "Config'" not in message
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "refusal",
    [
        ["seed=-1"],
        ["agent=evolutoin"],
        ["model=resnet21"],
        ["model=mynet.missing"],
        ["model.checkpoint=nowhere.pth"],
        ["data=imagefolder", "data.root=nowhere"],
        ["data=own", "data.factory=mynet.pictures"],
        ["stages=[export]"],
        ["budget.macs_ratio=0.0001", "budget.min_preserve_ratio=1", "stages=[search]"],
        ["-m", "seed=0,1", "agent=evolutoin"],
        ["-m", "seed=0,1", "run_dir=run"],
    ],
    ids=" ".join,
)
def test_a_refused_command_leaves_nothing_in_the_current_directory(
    tmp_path: Path, refusal: list[str]
) -> None:
    cwd = workspace(tmp_path)
    before = sorted(path.name for path in cwd.iterdir())
    refused(amc(*FAKE, *refusal, cwd=cwd))
    assert sorted(path.name for path in cwd.iterdir() if path.name != "__pycache__") == before


def test_a_refused_command_leaves_what_others_have_put_beside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    refused(amc(*FAKE, "seed=-1", "run_dir=runs/mine/new", cwd=tmp_path), "seed is -1")
    assert [*tmp_path.rglob("*")] == [tmp_path / "runs"]


def test_a_refused_command_leaves_an_empty_folder_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    refused(amc(*FAKE, "seed=-1", "run_dir=mine", cwd=tmp_path), "seed is -1")
    assert (tmp_path / "mine").exists()


def test_a_mistyped_network_is_refused_before_its_images_are_read(tmp_path: Path) -> None:
    outcome = amc("data=imagefolder", "data.root=nowhere", "model=resnet21", "run_dir=new", cwd=tmp_path)
    refused(outcome, "resnet21", "resnet20")
    assert "nowhere" not in outcome.err


IMPOSSIBLE = [
    (["stages=[]"], ["stages is []", "train"]),
    (["tracker.mode=of"], ["tracker.mode is 'of'", "online, offline, disabled"]),
    (["stages=[inspect]", "data.name=fqke"], ["fqke", "fake"]),
    (["stages=[search]", "reward=no_such_module.score"], ["no_such_module"]),
    (["stages=[search]", "reward=math.pi"], ["math.pi", "function"]),
    (["stages=[search]", "budget.kind=watts"], ["watts", "macs", "params"]),
    (["stages=[search]", "budget.fit=squeeze"], ["budget.fit is 'squeeze'", "scale, cut"]),
    (["stages=[search]", "budget.macs_ratio=-1"], ["budget.macs_ratio is -1", "(0, 1]"]),
    (["stages=[search]", "budget.macs_ratio=1.5"], ["budget.macs_ratio is 1.5", "(0, 1]"]),
    (["stages=[search]", "budget.macs_ratio=.nan"], ["budget.macs_ratio is nan", "(0, 1]"]),
    (["stages=[search]", "budget.macs_ratio=null"], ["budget.macs_ratio is None"]),
    (["stages=[search]", "budget.round_to=1000"], ["budget.round_to is 1000", "at most 16"]),
    (["stages=[search]", "budget.round_to=0"], ["budget.round_to is 0", "at least 1"]),
    (["stages=[search]", "budget.min_preserve_ratio=0"], ["budget.min_preserve_ratio is 0"]),
    (["stages=[search]", "agent.episodes=0"], ["agent.episodes is 0", "at least 1"]),
    (["stages=[search]", "agent.warmup_episodes=-1"], ["agent.warmup_episodes is -1"]),
    (["stages=[search]", "seed=-1"], ["seed", "-1"]),
    (["stages=[search]", "threads=0"], ["threads", "0"]),
    (["stages=[search]", "compressor.batch_size=0"], ["batch_size", "0"]),
    (["stages=[search]", "compressor.positions_per_image=0"], ["positions_per_image", "0"]),
    (["stages=[search]", "compressor.order=l7"], ["l7", "l1"]),
    (["stages=[search]", "compressor.exclude=['33']"], ["'33'", "no channel group"]),
    (["model.checkpoint=x.pth", "model.pretrained=true"], ["are both given", "use one of them"]),
    (["compressor.refit=false", "compressor.sequential_images=8"], ["compressor.sequential_images=0, too"]),
    (["stages=[search]", "device=nonsense"], ["device=nonsense"]),
    (["stages=[train]", "train.epochs=3", "device=nonsense"], ["device=nonsense"]),
    (["stages=[finetune]", "finetune.epochs=-1"], ["epochs", "-1"]),
    (["stages=[finetune]", "finetune.lr=0"], ["lr", "0"]),
    (["stages=[prune]", "prune.activation_rounds=-1"], ["prune.activation_rounds is -1"]),
    (["stages=[prune]", "prune.held_out=0.9"], ["prune.held_out is 0.9"]),
    (["stages=[export]", "export.formats=[litrt]"], ["litrt", "did you mean 'litert'"]),
    (["stages=[benchmark]", "latency.throughput_batch=-1"], ["latency.throughput_batch is -1"]),
    (["stages=[benchmark]", "latency.backends=[adb]", "latency.adb.format=x"], ["latency.adb.format"]),
    (["stages=[serve]", "serve.rate=0"], ["serve.rate is 0"]),
    (["stages=[serve]", "serve.batch=0"], ["serve.batch is 0"]),
    (["stages=[serve]", "serve.backend=tflite"], ["tflite"]),
    (["stages=[serve]", "serve.backend=ssh"], ["serve.backend is ssh, another device"]),
    (
        ["quantize.method=static_int8", "quantize.tolerance=0.1", "quantize.sensitivity_images=0"],
        ["quantize.tolerance is 0.1", "sensitivity_images=0"],
    ),
    (["stages=[benchmark]", "latency.threads=0"], ["latency.threads is 0"]),
    (["stages=[search]", "compressor.order=l1", "agent.guide=greedy"], ["compressor.order is 'l1'", "obs"]),
    (["stages=[benchmark]", "latency.rounds=0"], ["latency.rounds is 0"]),
]


UNMADE = [
    (["stages=[train,sparsify,report]"], "report needs a pruned or quantized network, but run has none; add"),
    (["stages=[train,sparsify,report]"], "leave report out: that of sparsify is sparsity.html"),
    (["stages=[train,search,export]"], "export needs a pruned or quantized network, but nothing prunes what"),
    (["stages=[train,finetune]"], "finetune needs a pruned network, but run has none; add prune before"),
    (["stages=[train,quantize,serve]"], "serve needs a pruned network, but run has none; add prune before"),
    (["stages=[train,search,prune,choose,benchmark]"], "but nothing prunes what choose finds; add prune"),
    (["stages=[train,search,report]", "budget.macs_ratios=[0.5]"], "but nothing prunes what search finds"),
]


def test_a_job_is_refused_whose_last_stage_would_miss_its_network(cwd: Path) -> None:
    base = composed(*TINY, "run_dir=run")
    for overrides, part in UNMADE:
        assert part in check_error(base, *overrides, cwd=cwd)
    folder = RunFolder(cwd / "run")
    made = ("search,prune,finetune,serve", "schedule,report", "quantize,export,benchmark,report", "evaluate")
    for names in made:
        assert _lacking(names.split(","), folder, "static_int8") is None
    assert _lacking(["quantize", "report"], folder, "none") == ("report", f"{folder} has none")
    for path in (folder.pruned, folder.model):
        path.touch()
    for names in ("train,finetune,report", "verify,serve", "train,quantize,report"):
        assert _lacking(names.split(","), folder, "none") is None
    assert _lacking(["search", "report"], folder, "none") == ("report", "nothing prunes what search finds")


def test_impossible_values_are_refused_before_any_work(ready: Path) -> None:
    base = composed(*TINY, "run_dir=run")
    for overrides, parts in IMPOSSIBLE:
        message = check_error(base, *overrides, cwd=ready)
        assert "\n" not in message
        for part in parts:
            assert part in message, (overrides, message)


@pytest.mark.parametrize(
    "override",
    ["budget.macs_ratio=0", "agent.episodes=0", "latency.backends=[tflite]", "compressor.order=l7"],
)
def test_a_bad_value_is_refused_before_the_training(tmp_path: Path, override: str) -> None:
    refused(amc(*TINY, override, "run_dir=run", cwd=workspace(tmp_path)))
    assert not (tmp_path / "run/dense.safetensors").exists()


def test_a_refused_command_does_not_change_the_settings_of_the_run(old: Path) -> None:
    refused(amc("run_dir=run", "stages=[search]", "budget.macs_ratio=0", cwd=old), "macs_ratio")
    done("run_dir=run", "stages=[search]", cwd=old)
    assert read_json(old / "run/strategy.json")["budget"]["ratio"] == 0.5


def test_an_infeasible_budget_is_refused_with_the_smallest_feasible_one(old: Path) -> None:
    line = refused(amc("run_dir=run", "stages=[search]", "budget.macs_ratio=0.01", cwd=old), "is 0.01")
    minimum = float(re.search(r"keeps (0\.\d+) of the macs", line)[1])
    assert minimum > 0.01
    done("run_dir=run", "stages=[search]", f"budget.macs_ratio={minimum + 1e-4}", cwd=old)
    assert all(abs(line["macs_ratio"] - minimum) <= 1e-4 for line in read_lines(old / "run/search.jsonl"))


def test_a_strategy_of_another_network(old: Path, tmp_path: Path) -> None:
    arguments = (*SMALL, "model=plain20", "run_dir=other", "strategy=run/strategy.json")
    refused(amc(*arguments, "stages=[train,prune]", cwd=old), "strategy", "another network")
    assert not (old / "other/pruned.safetensors").exists()


@pytest.mark.parametrize(("name", "part"), [("nope.json", "no such file"), ("mynet.py", "JSON")])
def test_a_named_strategy_is_read_before_any_work(old: Path, name: str, part: str) -> None:
    for stages in ("train,prune", "train,compare"):
        refused(amc(*TINY, f"strategy={name}", f"stages=[{stages}]", "run_dir=new", cwd=old), name, part)
    assert not (old / "new").exists()


@pytest.mark.parametrize("stages", ["search,prune,evaluate", *map(slow, ("choose,prune", "schedule"))])
def test_a_remembered_strategy_is_not_pruned_in_place_of_what_is_found(old: Path, stages: str) -> None:
    (old / "other.json").write_bytes((old / "run/strategy.json").read_bytes())
    done("run_dir=run", "stages=[prune]", "strategy=other.json", cwd=old)
    before = artifacts(old / "run")
    found = amc("run_dir=run", "agent=random", f"stages=[{stages}]", cwd=old)
    refused(found, "other.json", "strategy=null takes it back", stages.partition(",")[0])
    assert artifacts(old / "run") == before
    if stages.startswith("search"):
        done("run_dir=run", "agent=random", f"stages=[{stages}]", "strategy=null", cwd=old)
        assert read_json(old / "run/strategy.json")["provenance"]["agent"] == "random"


def test_a_strategy_that_no_stage_carries_out_is_refused(old: Path) -> None:
    own = read_json(old / "run/strategy.json")
    for group in own["groups"]:
        group["kept"] = group["dense"]
    (old / "other.json").write_text(json.dumps(own))
    command = ("run_dir=run", "strategy=other.json", "budget.macs_ratio=1")
    refused(
        amc(*command, "stages=[finetune,evaluate]", cwd=old), "strategy=other.json", "add prune to stages"
    )
    refused(amc("run_dir=run", "strategy=nope.json", "stages=[evaluate]", cwd=old), "nope.json")
    done(*command, "stages=[prune]", cwd=old)
    (old / "other.json").unlink()  # a remembered one is not read where nothing needs it
    done("run_dir=run", "stages=[evaluate]", cwd=old)


def test_a_truncated_strategy(old: Path) -> None:
    path = old / "run/strategy.json"
    path.write_text(path.read_text()[:100])
    refused(amc("run_dir=run", "stages=[evaluate]", cwd=old), "strategy.json", "truncated")


@pytest.mark.parametrize(
    ("name", "stage"),
    [("search.jsonl", "report"), ("overrides.json", "evaluate"), ("strategy.json", "evaluate")],
)
def test_a_damaged_record_is_named(old: Path, name: str, stage: str) -> None:
    with (old / "run" / name).open("a") as file:
        file.write("}{ damaged: [\n")
    refused(amc("run_dir=run", f"stages=[{stage}]", cwd=old), name)


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("evaluations.jsonl", "search"),
        ("stages/search.json", "report"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("stages/prune.json", "report"), ("provenance.json", "evaluate"))
        ),
        ("strategy.json", "search"),
    ],
)
def test_a_damaged_record_that_is_made_again_is_set_aside(old: Path, name: str, stage: str) -> None:
    path = old / "run" / name
    with path.open("a") as file:
        file.write("}{ damaged: [\n")
    damaged, strategy = path.read_bytes(), read_json(old / "run/strategy.json") if stage == "report" else None
    done("run_dir=run", f"stages=[{stage}]", cwd=old)
    assert path.with_name(f"{path.name}.damaged").read_bytes() == damaged
    assert strategy is None or read_json(old / "run/strategy.json") == strategy


@pytest.mark.parametrize("value", ["float('nan')", "'high'", "1 / 0"])
def test_a_reward_that_gives_no_number(old: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.syspath_prepend(old)
    (old / "odd.py").write_text(f"def score(evaluation):\n    return {value}\n")
    before = (old / "run/strategy.json").read_bytes()
    refused(amc("run_dir=run", "stages=[search]", "reward=odd.score", cwd=old), "odd.score")
    assert (old / "run/strategy.json").read_bytes() == before


# --- checkpoints


def truncated(weights: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(weights, path)
    path.write_bytes(path.read_bytes()[:-2000])


def truncated_safetensors(weights: dict[str, torch.Tensor], path: Path) -> None:
    save_file(weights, path)
    path.write_bytes(path.read_bytes()[:-200])


def misshapen(weights: dict[str, torch.Tensor], path: Path) -> None:
    torch.save({**weights, "3.weight": torch.zeros(16, 4, 3, 3)}, path)


def not_finite(weights: dict[str, torch.Tensor], path: Path) -> None:
    torch.save({**weights, "3.bias": torch.full((16,), torch.nan)}, path)


@pytest.mark.parametrize(
    ("name", "write", "parts"),
    [
        ("x.pth", lambda weights, path: None, ["no such file"]),
        slow("x.pth", lambda weights, path: path.touch(), ["empty file"]),
        slow("x.pth", truncated, ["truncated"]),
        ("x.safetensors", truncated_safetensors, ["truncated"]),
        ("x.pth", misshapen, ["3.weight has shape (16, 4, 3, 3), expected (16, 8, 3, 3)"]),
        ("x.pth", lambda weights, path: torch.save(torch.nn.Linear(2, 2), path), ["pickled", "state_dict"]),
        slow("x.pth", not_finite, ["3.bias holds NaN or Inf"]),
        slow("x.txt", lambda weights, path: path.write_text("weights"), [".txt", ".safetensors"]),
    ],
    ids=["missing", "empty", "truncated", "truncated-safetensors", "shape", "pickled", "nan", "suffix"],
)
def test_a_bad_checkpoint(
    ready: Path,
    tmp_path: Path,
    name: str,
    write: Callable[[dict[str, torch.Tensor], Path], None],
    parts: list[str],
) -> None:
    cwd = workspace(tmp_path)
    write(load_file(ready / "run/dense.safetensors"), cwd / name)
    refused(amc(*TINY, f"model.checkpoint={name}", "run_dir=run", cwd=cwd), name, *parts)
    assert not (cwd / "run/dense.safetensors").exists()


def test_nan_in_the_runs_own_weights(old: Path) -> None:
    path = old / "run/dense.safetensors"
    not_finite(load_file(path), old / "nan.pth")
    save_file(torch.load(old / "nan.pth", weights_only=True), path)
    refused(amc("run_dir=run", "stages=[search]", cwd=old), "dense.safetensors", "NaN")


# --- data


def images(folder: Path, *classes: str) -> None:
    for name in classes:
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / name / "x.png")


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        slow(["data=cifar10"], ["data.root is missing"]),
        (["data=cifar10", "data.root=nowhere"], ["nowhere", "data.download=true"]),
        slow(["data=imagefolder"], ["data.root is missing"]),
        (["data=imagefolder", "data.root=nowhere"], ["nowhere", "data.root"]),
        (["data=fake", "data.calibration=600"], ["calibration", "600", "512"]),
        (["data=fake", "data.image_size=0"], ["image_size", "0"]),
    ],
    ids=" ".join,
)
def test_missing_data(tmp_path: Path, overrides: list[str], parts: list[str]) -> None:
    refused(amc(*overrides, "run_dir=run", cwd=tmp_path), *parts)


def test_an_empty_class_folder(tmp_path: Path) -> None:
    images(tmp_path / "root/train", "cat", "dog")
    images(tmp_path / "root/val", "cat", "dog")
    (tmp_path / "root/train/dog/x.png").unlink()
    refused(
        amc("data=imagefolder", "data.root=root", "run_dir=run", cwd=tmp_path), "root/train/dog", "no image"
    )


# --- networks


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["model=mynet.small_head"], ["labels run from 0 to 3", "2 outputs"]),
        slow(["model=mynet.linear", "stages=[train,search]"], ["no prunable layers"]),
        (["model=mynet.linear", "stages=[inspect]"], ["no prunable layers"]),
        (["model=mynet.Pair", "reward=accuracy"], ["reward=accuracy needs", "reward=likeness"]),
        slow(["model=mynet.Pair", "reward=agreement"], ["needs a classifier", "does not return logits"]),
        (
            ["model=mynet.Hidden", "stages=[train,search]"],
            ["smallest allowed network", "Some channels stay whole", "body.3 (the zeroed and the cut"],
        ),
        (["model=mynet.mak"], ["mynet.mak", "mynet.make"]),
        slow(["model=mynet.nn"], ["mynet.nn", "function"]),
        slow(["model=nonet.make"], ["nonet"]),
        slow(["model=resnet20", "+model.kwargs.depth=3"], ["depth"]),
        slow(["model=resnet20", "model.pretrained=true"], ["pretrained"]),
        (["model=mynet.linear", "stages=[inspect]", "data.image_size=9"], ["(3, 9, 9)", "image size"]),
    ],
    ids=" ".join,
)
def test_a_network_that_cannot_be_used(tmp_path: Path, overrides: list[str], parts: list[str]) -> None:
    refused(amc(*SMALL, *overrides, "run_dir=run", cwd=workspace(tmp_path)), *parts)


# --- run folders


@pytest.mark.parametrize(
    "stage",
    ["search", "prune", "report", *map(slow, ("finetune", "export", "benchmark", "evaluate", "compare"))],
)
def test_a_stage_on_an_empty_folder_names_the_stage_to_run_first(tmp_path: Path, stage: str) -> None:
    outcome = amc(*TINY, f"stages=[{stage}]", "run_dir=run", cwd=workspace(tmp_path))
    refused(outcome, "run has no ", re.search(r"stages=\[(train|search|prune)\]", outcome.err)[0])


@pytest.mark.parametrize("stage", ["choose", "finetune", "export", "report"])
def test_missing_results_are_told_before_pictures_are_read(tmp_path: Path, stage: str) -> None:
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "damaged.png").write_bytes(b"no picture")
    pictures = ("data=imagefolder", f"data.root={tmp_path}", "data.train=photos", "data.test=photos")
    outcome = amc(*pictures, f"stages=[{stage}]", "run_dir=run", cwd=tmp_path)
    refused(outcome, "run has no ", "no other result of a run")


@pytest.mark.parametrize(
    ("stage", "missing", "first"),
    [
        ("search", "dense.safetensors", "train"),
        ("prune", "strategy.json", "search"),
        slow("report", "strategy.json", "search"),
        slow("report", "pruned.safetensors", "prune"),
        slow("finetune", "pruned.safetensors", "prune"),
        ("export", "model.safetensors", "prune"),
        slow("benchmark", "model.safetensors", "prune"),
    ],
)
def test_a_stage_without_its_artifact(old: Path, stage: str, missing: str, first: str) -> None:
    (old / "run" / missing).unlink()
    refused(amc("run_dir=run", f"stages=[{stage}]", cwd=old), missing, f"stages=[{first}]")


@pytest.mark.parametrize("run_dir", ["file", "file/run"])
def test_a_run_folder_that_cannot_be_made(tmp_path: Path, run_dir: str) -> None:
    (tmp_path / "file").write_text("precious")
    refused(amc(*FAKE, f"run_dir={run_dir}", cwd=tmp_path), run_dir)
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("agent.episodes=0", ["agent.episodes is 0"]),
        ("model=mine.make", ["there is no module 'mine'"]),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("model=resnet21", ["'resnet21'", "did you mean"]),
                ("reward=os.nothing.score", ["there is no module 'os.nothing'"]),
                ("latency.backends=[onnx]", ["onnx", "onnxruntime"]),
                ("model.checkpoint=gone.pth", ["model.checkpoint=gone.pth"]),
                ("compressor.precision=float8", ["float8", "bfloat16"]),
            )
        ),
    ],
)
def test_a_mistyped_value_is_refused_without_torch(tmp_path: Path, override: str, parts: list[str]) -> None:
    code = (
        "import sys; from experiments.main import main; sys.argv[0] = 'amc'\n"
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules, 'torch'"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[3]), "PATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *FAKE, override, "run_dir=new"]
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    refused(Outcome(ended.returncode, ended.stdout, ended.stderr), *parts)
    assert not (tmp_path / "new").exists()
