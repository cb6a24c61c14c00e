"""Racing and bfloat16 through the command."""

import json

import pytest
import torch

from amc.models.checkpoint import load_state_dict
from amc.scoring.precision import computes_bf16
from tests.experiments.helpers import TINY, amc, done, read_lines, refused, timeless, workspace

RACE = (
    "compressor.racing_risk=0.2",
    "agent=random",
    "agent.episodes=12",
    "data.search_val=400",
    "budget.round_to=1",
)


@pytest.fixture(scope="module")
def cwd(tmp_path_factory):
    cwd = workspace(tmp_path_factory.mktemp("racing"))
    done(*TINY, *RACE, "stages=[train,search,prune]", "run_dir=run", cwd=cwd)
    return cwd


def test_the_best_was_never_stopped_and_who_was_is_below_it(cwd):
    episodes = read_lines(cwd / "run/search.jsonl")
    best = max(episodes, key=lambda episode: episode["return"])
    assert best["stopped_after"] is None
    assert all(e["return"] < best["return"] for e in episodes if e["stopped_after"] is not None)


def test_a_race_is_the_same_again(cwd):
    before = timeless(cwd / "run/search.jsonl")
    done("run_dir=run", "stages=[search]", cwd=cwd)
    assert timeless(cwd / "run/search.jsonl") == before


@pytest.mark.parametrize("bad", ["reward=agreement", "workers=process"])
def test_what_a_race_cannot_be_combined_with_is_refused(cwd, bad):
    refused(
        amc(*TINY, *RACE, bad, "stages=[search]", "run_dir=other", cwd=cwd), "compressor.racing_risk is 0.2"
    )


def test_a_search_in_bfloat16_prunes_in_float32(cwd):
    done(*TINY, "compressor.precision=bfloat16", "stages=[train,search,prune]", "run_dir=half", cwd=cwd)
    weights = load_state_dict(cwd / "half/pruned.safetensors")
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.float32}


def test_an_unknown_precision_is_refused(cwd):
    refused(
        amc(*TINY, "compressor.precision=int3", "run_dir=other", cwd=cwd), "compressor.precision is 'int3'"
    )


def test_precision_auto_is_recorded_as_what_the_hardware_computes_in(cwd):
    done(*TINY, "compressor.precision=auto", "stages=[train,search]", "run_dir=auto", cwd=cwd)
    found = json.loads((cwd / "auto/stages/search.json").read_text())["precision"]
    assert found == ("bfloat16" if computes_bf16(torch.device("cpu")) else "float32")
