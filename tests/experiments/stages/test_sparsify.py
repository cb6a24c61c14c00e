"""Stage ``sparsify``: rounds of search, zeros and fine-tuning, resumed to the same bytes."""

import shutil
import sys
from dataclasses import replace
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from amc.errors import AmcError
from experiments.reproduce.__main__ import main
from experiments.reproduce.sparse_runs import SparseResult, merged_sparse, read_sparse, sparse_tables
from tests.experiments.helpers import (
    TINY,
    amc,
    check_error,
    composed,
    done,
    read_json,
    read_lines,
    refused,
    workspace,
)

JOB = (
    *TINY, "agent=random", "agent.episodes=6", "finetune.epochs=1", "sparsify.densities=[0.5,0.2]",
    "stages=[sparsify]", "run_dir=run", "reward=accuracy",
)  # fmt: skip


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    cwd = workspace(tmp_path_factory.mktemp("sparsify"))
    done(*TINY, "stages=[train]", "run_dir=run", cwd=cwd)
    done(*JOB, cwd=cwd)
    return cwd


@pytest.mark.slow
def test_every_round_meets_its_density_and_keeps_the_zeros_before(sparse):
    rounds = read_json(sparse / "run/stages/sparsify.json")["rounds"]
    assert len(rounds) == 2
    for found, density in zip(rounds, (0.5, 0.2), strict=True):
        assert 0.05 <= found["density"] <= density
        assert found["density"] == pytest.approx(
            sum(layer["kept"] for layer in found["layers"])
            / sum(layer["weights"] for layer in found["layers"])
        )
        assert 0 <= found["top1_finetuned"] <= 100
    for before, after in zip(rounds[0]["layers"], rounds[1]["layers"], strict=True):
        assert after["kept"] <= before["kept"]
    state = load_file(sparse / "run/sparse.safetensors")
    for layer in rounds[-1]["layers"]:
        assert int((state[f"{layer['name']}.weight"] != 0).sum()) <= layer["kept"]
    lines = read_lines(sparse / "run/density_0.20/search.jsonl")
    assert len(lines) == 6
    assert max(line["return"] for line in lines) == pytest.approx(rounds[-1]["top1_search"] / 100 - 1)
    page = (sparse / "run/sparsity.html").read_text()
    assert "<svg" in page
    assert f"{rounds[-1]['top1_finetuned']:.2f}" in page


@pytest.mark.slow
def test_results_name_every_round(sparse, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["reproduce", str(sparse)])
    main()
    text = capsys.readouterr().out
    rounds = read_json(sparse / "run/stages/sparsify.json")["rounds"]
    for found in rounds:
        assert f"| random | 0 | {100 * found['density']:.2f}% | {found['top1_search']:.2f} |" in text
        assert f"| {found['top1_finetuned']:.2f} |" in text
    assert "- recipe A: `finetune.epochs=1 agent.episodes=6 " in text
    assert "- recipe A, random, seed 0: `amc " in text


def test_results_are_drawn_again_from_records(sparse, tmp_path, monkeypatch):
    page, drawn = tmp_path / "R.md", []
    for folders in ([str(sparse)], []):
        monkeypatch.setattr(sys, "argv", ["reproduce", *folders, "--out", str(page)])
        main()
        drawn.append(page.read_text())
    assert "single weights (fine-grained)" in drawn[0]
    assert drawn[0] == drawn[1]
    assert str(sparse) not in (tmp_path / "records/sparse/runs.jsonl").read_text()


def test_runs_of_other_densities_have_rows_of_their_own_and_a_seed_counts_once(sparse):
    (found,) = read_sparse([sparse])
    assert found.densities == (0.5, 0.2)
    first, second = found.rounds
    short = replace(found, rounds=[first])
    other = replace(found, rounds=[{**second, "target": 0.1}])
    better = replace(found, seed=1, rounds=[{**first, "top1_pruned": 99.0}, second])
    again = replace(better, rounds=[first, second])
    text = sparse_tables(merged_sparse([found, short], [other, better, again]))
    cells = rows_of(text)
    left = [f"{100 * each['density']:.2f}%" for each in (first, second)]
    assert cells == [
        ["A", "random", "0", left[1]],
        ["A", "random", "0", left[0]],
        ["A", "random", "0, 1", left[0]],
        ["A", "random", "0, 1", left[1]],
    ]
    assert "99.00" not in text


def rows_of(text):
    """Return recipe, agent, seeds and weights left of every row."""
    return [line.strip("| ").split(" | ")[:4] for line in text.splitlines() if " | random | " in line]


JOB_OF_RESULTS = ("net", "cifar10"), "random"
COMMAND = "amc model=net agent=random sparsify.densities=[0.5] stages=[sparsify]"


def result(seed, words, *, dense=90.0, later=(), **changes):
    """Return a result of one round, made by a command with some words; a later one may have followed."""
    command, *others = (f"{COMMAND} {own}" for own in (words, *later))
    commands = {"command": others[0], "sparsified_by": command} if others else {"command": command}
    rounds = [{"target": 0.5, "density": 0.5, "top1_pruned": 80.0}]
    origin = {**commands, "stage_commits": {"sparsify": None}, "seed": seed}
    return SparseResult(*JOB_OF_RESULTS, seed, dense, rounds, origin, **changes)


def test_runs_of_several_recipes_are_no_seeds_of_one_row_and_replace_none():
    short = "finetune.epochs=1 reward=accuracy sparsify.order=magnitude"
    long = "finetune.epochs=30 budget.fit=cut data.calibration=50 agent.episodes=9"
    results = [
        result(0, short),
        result(0, long),
        result(1, long),
        result(2, short, later=["finetune.epochs=7"]),
    ]
    text = sparse_tables(merged_sparse(results, [result(1, f"{long} threads=2 finetune.compile=true")]))
    assert rows_of(text) == [["A", "random", "0, 2", "50.00%"], ["B", "random", "0, 1", "50.00%"]]
    assert f"- recipe A: `{short}`\n" in text
    searches = "agent.episodes=9 budget.fit=cut"
    assert f"- recipe B: `finetune.epochs=30 {searches}`, with `data.calibration=50`\n" in text
    assert f"- recipe A, random, seeds 0, 2: `{COMMAND} {short}`, commit None\n" in text


def test_runs_of_two_dense_networks_or_data_sets_share_no_table():
    given = result(0, "model.checkpoint=/home/me/net.pth finetune.epochs=1", place="given")
    other = result(0, "finetune.epochs=2", dense=85.0, place="other")
    with pytest.raises(AmcError, match=r"other has a dense network of 85.00%, given one of 90.00%.*seed 0"):
        merged_sparse([given], [other])
    assert len(merged_sparse([given], [replace(other, seed=1)])) == 2
    assert len(merged_sparse([result(0, "finetune.epochs=1")], [other])) == 2  # each has trained its own
    ten, four = (result(seed, "", model={"num_classes": n}, place=str(n)) for seed, n in ((0, 10), (1, 4)))
    with pytest.raises(AmcError, match=r"4 has 4 classes, 10 10: expected the same"):
        merged_sparse([ten], [four])


def test_a_stage_that_was_killed_ends_with_the_same_bytes(sparse):
    run = sparse / "run"
    weights = (run / "sparse.safetensors").read_bytes()
    for path in (run / "sparse.safetensors", run / "density_0.20/finetune.ckpt.safetensors"):
        path.unlink()
    log = run / "density_0.20/evaluations.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:2]) + b'{"half')
    done(*JOB, cwd=sparse)
    assert (run / "sparse.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_an_agent_that_learns_and_one_that_does_not(sparse):
    for agent in ("ddpg", "greedy", "uniform"):
        words = (*JOB, f"agent={agent}", "sparsify.order=magnitude", "finetune.epochs=0")
        done(*words, *(["agent.warmup_episodes=2"] if agent == "ddpg" else []), cwd=sparse)
        facts = read_json(sparse / "run/stages/sparsify.json")
        assert facts["rounds"][-1]["density"] <= 0.2
        assert "top1_finetuned" not in facts["rounds"][-1]
    assert torch.isfinite(load_file(sparse / "run/sparse.safetensors")["0.weight"]).all()


def test_an_agent_of_ones_own_that_fails_is_one_line(sparse):
    (sparse / "broken.py").write_text("def search(*given, **named):\n    raise ValueError('no idea')\n")
    words = (*JOB, "agent.name=broken.search", "sparsify.densities=[0.6]", "finetune.epochs=0")
    refused(amc(*words, cwd=sparse), "agent 'broken.search' fails: ValueError: no idea")


def test_excluded_layers_keep_all_weights(sparse, tmp_path):
    words = (*JOB, "agent.name=random", "agent.episodes=2", "sparsify.densities=[0.6]", "finetune.epochs=0")
    cwd = shutil.copytree(sparse, tmp_path / "cwd")
    done(*words, "compressor.exclude=[3,9]", cwd=cwd)  # a group, and the classifier, which has none
    (found,) = read_json(cwd / "run/stages/sparsify.json")["rounds"]
    left = {layer["name"]: layer["kept"] / layer["weights"] for layer in found["layers"]}
    assert left["3"] == left["9"] == 1 > left["5"]
    assert found["density"] <= 0.6
    for word, line in {
        "sparsify.densities=[0.4]": "or exclude fewer layers: those of compressor.exclude keep all weights",
        "compressor.exclude=[conv9]": "exclude has 'conv9', which matches no channel group",
    }.items():
        refused(amc(*words, "compressor.exclude=[3,9]", word, cwd=cwd), line)


def test_bad_settings_are_refused(sparse):
    base = composed(*JOB)
    for override, line in {
        "sparsify.densities=[0.2,0.5]": "sparsify.densities is [0.2, 0.5]; expected falling",
        "sparsify.densities=[]": "sparsify.densities is []",
        "sparsify.densities=[0.01]": "at least sparsify.min_density=0.05",
        "sparsify.densities=[0.5,0.05]": "sparsify.densities has 0.05, but",
        "sparsify.min_density=0": "sparsify.min_density is 0.0; expected a share in (0, 1]",
        "sparsify.order=l7": "sparsify.order is 'l7'; expected one of magnitude, curvature",
        "reward=accuracy_params": "reward=accuracy_params enforces no budget",
    }.items():
        assert line in check_error(base, *override.split(), cwd=sparse)
    words = [word for word in JOB if not word.startswith("agent")]
    refused(amc(*words, "agent=global_l1", cwd=sparse), "agent=global_l1 ranks channels")
    thompson, tpe = (composed(*words, f"agent={name}") for name in ("thompson", "tpe"))
    assert "mynet.py cannot be read" in check_error(thompson, "agent.pretrained=mynet.py", cwd=sparse)
    given = ("agent.acts=weights", "budget.fit=cut")
    assert "budget.fit is 'cut'" in check_error(thompson, *given, cwd=sparse)
    with mock.patch.dict(sys.modules, {"optuna": None}):
        assert "agent=tpe needs its package" in check_error(tpe, cwd=sparse)


LOOKING = """
import json
import numpy as np
from agents import random_search

def search(envs, episodes, seed, on_episode):
    seen = [envs[0].reset()[0]]
    seen += [envs[0].step(np.ones(1))[0] for _ in range(envs[0].episode_length)]
    with open("seen.jsonl", "a") as file:
        file.write(json.dumps([float(one[9]) for one in seen]) + "\\n")
    return random_search(envs, episodes, seed, on_episode)
"""


def test_what_comes_after_a_layer_is_a_share_of_the_dense_network_in_every_round(sparse):
    (sparse / "looking.py").write_text(LOOKING)
    words = (*JOB, "agent.name=looking.search", "agent.episodes=1", "finetune.epochs=0", "run_dir=run")
    done(*words, cwd=sparse)
    first, second = read_lines(sparse / "seen.jsonl")
    assert first == second
    assert 1 > max(first) > 0
