"""What stages say about accuracies that are not what they seem."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments.stages.networks.finetune import described
from experiments.stages.networks.train import chance_note
from tests.experiments.helpers import TINY, amc, done, read_json, refused, workspace


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A current directory with a trained and pruned run."""
    cwd = workspace(tmp_path_factory.mktemp("pruned"))
    stages = "stages=[train,search,prune]"
    done(*TINY, "train.epochs=20", "train.lr=0.05", "data.search_val=64", "run_dir=run", stages, cwd=cwd)
    return cwd


@pytest.fixture
def again(pruned: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pruned, tmp_path / "again")


@pytest.mark.slow
def test_a_network_that_fine_tuning_makes_worse_is_kept_as_it_was(again: Path) -> None:
    out = done(
        "run_dir=run", "stages=[finetune,evaluate]", "finetune.lr=3", "finetune.grad_clip=0.5", cwd=again
    ).out
    facts = read_json(again / "run/stages/finetune.json")
    assert facts["finetuned_top1"] < facts["pruned_top1"] == facts["val_top1"]
    assert facts["kept"] == "pruned"
    (line,) = [line for line in out.splitlines() if line.startswith("finetune:")]
    assert f"{facts['finetuned_top1']:.2f}% on search_val after 1 epochs" in line
    assert f"{facts['pruned_top1']:.2f}% before: the network before is better and is kept" in line
    before, after = (load_file(again / f"run/{name}.safetensors") for name in ("pruned", "model"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_network_that_is_kept_though_it_is_worse_says_why() -> None:
    measured = "90.00% on search_val after 3 epochs, 91.50% before"
    known = ": the new one is kept, as the dense network may have been trained on search_val"
    assert described(90.0, 91.5, 3, worse=False) == measured + known
    assert described(90.0, 91.5, 3, worse=True) == f"{measured}: the network before is better and is kept"
    assert described(92.0, 91.5, 3, worse=False).endswith("91.50% before")


def test_a_network_that_fine_tuning_makes_better_is_written(again: Path) -> None:
    weights = load_file(again / "run/pruned.safetensors")
    last = max(name for name in weights if weights[name].ndim == 2)
    save_file({**weights, last: weights[last].roll(1, 0)}, again / "run/pruned.safetensors")
    done("run_dir=run", "stages=[finetune]", "finetune.epochs=5", cwd=again)
    facts = read_json(again / "run/stages/finetune.json")
    assert facts["val_top1"] == facts["finetuned_top1"] > facts["pruned_top1"]
    assert facts["kept"] == "finetuned"


def test_networks_are_judged_on_corrupted_images(again: Path) -> None:
    out = done("run_dir=run", "stages=[evaluate,report]", "evaluate.corruptions=[noise,jpeg]", cwd=again).out
    facts = read_json(again / "run/stages/evaluate.json")
    judged = {name: facts[name] for name in ("dense", "pruned")}
    for row in judged.values():
        assert row["corrupted"].keys() == {"noise", "jpeg"}
        assert all(0 <= top1 <= row["top1"] + 10 for top1 in row["corrupted"].values())
    noisy = {name: row["corrupted"]["noise"] for name, row in judged.items()}
    assert f"with noise: dense {noisy['dense']:.2f}%, pruned {noisy['pruned']:.2f}%" in out
    page = (again / "run/report.html").read_text()
    assert "Corrupted images, top-1, %" in page
    wrong = amc("run_dir=run", "stages=[evaluate]", "evaluate.corruptions=[nose]", cwd=again)
    refused(wrong, "unknown corruption 'nose'; expected of noise, blur", "did you mean 'noise'")


def test_chance_level_is_named() -> None:
    labels = torch.arange(100) % 10
    for accuracy in (0.0, 10.0, 15.9):
        assert "is chance level (10.00% of the images" in str(chance_note(accuracy, labels))
    assert chance_note(16.1, labels) is None
    assert chance_note(90.0, torch.tensor([0] * 90 + [1] * 10)) is not None


def test_dense_networks_that_know_nothing_or_too_much_are_remarked_on(again: Path) -> None:
    weights = load_file(again / "run/dense.safetensors")
    save_file(
        {name: torch.zeros_like(tensor) for name, tensor in weights.items()}, again / "zero.safetensors"
    )
    zero = ("model.checkpoint=zero.safetensors", "run_dir=zero", "stages=[train,evaluate]")
    out = done(*TINY, *zero, cwd=again).out
    assert "train: 25.00% is chance level" in out
    assert "evaluate: 25.00% is chance level" in out
    record = again / "zero/stages/train.json"
    record.write_text(record.read_text().replace("25.0", "99.0"))
    out = done("run_dir=zero", "stages=[evaluate]", cwd=again).out
    assert "dense has 99.00% on search_val and 25.00% on the test images" in out


def test_stages_that_need_logits_say_so(again: Path) -> None:
    (again / "maps.py").write_text(
        "from torch import nn\n"
        "def make(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))\n"
    )
    weights = {"0.weight": torch.randn(8, 3, 3, 3), "0.bias": torch.zeros(8)}
    save_file(
        {**weights, "2.weight": torch.randn(4, 8, 3, 3), "2.bias": torch.zeros(4)}, again / "w.safetensors"
    )
    job = (*TINY, "agent=uniform", "model=maps.make", "model.checkpoint=w.safetensors", "reward=likeness")
    for stage in ("finetune", "evaluate", "report"):
        parts = ("classifier", "maps.make does not return logits", "export and benchmark work without")
        refused(amc(*job, f"stages=[search,prune,{stage}]", f"run_dir={stage}", cwd=again), *parts)
