"""Networks are proved prunable before any work: in `inspect`, and before the dense network is trained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import amc as library
from tests.experiments.helpers import SMALL, amc, done, read_json, refused

NETWORKS = """
import torch
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 12, 3)
        self.head = nn.Linear(12, num_classes)

    def between(self, x):
        return x

    def forward(self, x):
        x = self.between(F.relu(self.b(F.relu(self.a(x)))))
        return self.head(F.relu(self.c(x)).mean((2, 3)))

class Auxiliary(Net):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.branch = nn.Conv2d(8, 1, 1)

    def between(self, x):
        return x + self.branch(x) if self.training else x

class Noisy(Net):
    def between(self, x):
        return F.dropout(x)

class Hidden(Net):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.shift = torch.randn(1, 1, 4, 4)

    def between(self, x):
        return x + self.shift.to(x)

class Pairs(Net):
    def forward(self, x):
        found = super().forward(x)
        return (found, found) if self.training else found

class Normed(Net):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        nn.utils.weight_norm(self.c)
"""
JOB = (*SMALL, "run_dir=run", "budget.macs_ratio=0.8")
WHOLE = "stages=[inspect,train,search,prune,finetune,evaluate]"


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    """A current directory with the module ``nets``."""
    (tmp_path / "nets.py").write_text(NETWORKS)
    return tmp_path


def fresh(name: str) -> torch.nn.Module:
    """Build a network of ``NETWORKS`` as a user would."""
    own: dict[str, type[torch.nn.Module]] = {}
    exec(NETWORKS, own)
    return own[name](4)


def test_faulty_groups_are_left_whole_and_the_job_goes_on(nets: Path) -> None:
    outcome = done(*JOB, "model=nets.Auxiliary", WHOLE, cwd=nets)
    reason = r"branch \(Conv2d\) reads these channels in training mode only"
    assert re.findall("^proof: .*", outcome.out, re.M) == [
        "proof: left whole, as they cannot be cut exactly: b (" + reason.replace("\\", "") + ")"
    ]
    assert re.search(rf"^left whole .*\n(.*\n)?b +8  {reason}$", outcome.out, re.M)
    facts = read_json(nets / "run/stages/inspect.json")
    assert [row["name"] for row in facts["groups"]] == ["a", "c"]
    assert facts["exactness"] == read_json(nets / "run/stages/search.json")["exactness"] < 1e-9
    loaded = library.load_pruned(nets / "run", fresh("Auxiliary"))
    assert loaded.b.out_channels == 8
    assert loaded.a.out_channels < 8 or loaded.c.out_channels < 12
    again = done("run_dir=run", "stages=[evaluate]", cwd=nets)
    assert "evaluate: finetuned" in again.out


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("Noisy", ["not deterministic in evaluation mode", "F.dropout"]),
        ("Hidden", ["when it is built anew and loaded", "(shift)"]),
        ("Pairs", ["nets.Pairs cannot be trained: in training mode", "a tuple of 2"]),
    ],
)
def test_a_network_is_refused_before_it_is_trained(nets: Path, name: str, parts: list[str]) -> None:
    refused(amc(*JOB, f"model=nets.{name}", WHOLE, cwd=nets), *parts)
    assert not (nets / "run/dense.safetensors").exists()


def test_inspect_says_that_a_network_cannot_be_trained(nets: Path) -> None:
    outcome = done(*JOB, "model=nets.Pairs", "stages=[inspect]", cwd=nets)
    assert "\ncannot be trained: in training mode the network returned a tuple of 2" in outcome.out
    refused(amc(*JOB, "model=nets.Noisy", "stages=[inspect]", cwd=nets), "not deterministic")


def test_a_job_that_cuts_no_channels_needs_no_proof(nets: Path) -> None:
    refused(amc(*JOB, "model=nets.Noisy", "stages=[sparsify]", cwd=nets), "run stages=[train]")


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weight_norm_is_searched_and_stored(nets: Path) -> None:
    done(*JOB, "model=nets.Normed", WHOLE, cwd=nets)
    loaded = library.load_pruned(nets / "run", fresh("Normed"))
    assert loaded.a.out_channels < 8
    assert loaded.c.out_channels == 12
