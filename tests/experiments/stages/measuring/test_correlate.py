"""What the returns of a search foretell: policies spread over them, carried out and fine-tuned one by one."""

import json
from types import SimpleNamespace

import pytest

from amc.errors import AmcError
from experiments.stages.measuring.correlate import correlations, policies
from experiments.stages.measuring.trials import tried
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

JOB = (*TINY, "agent=random", "agent.episodes=12", "budget.round_to=1", "run_dir=run")


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    cwd = workspace(tmp_path_factory.mktemp("correlate"))
    done(*JOB, "stages=[train,search,prune,evaluate]", cwd=cwd)
    return cwd


@pytest.mark.slow
def test_policies_are_judged_before_and_after_fine_tuning_and_remembered(searched):
    strategy = (searched / "run/strategy.json").read_bytes()
    done(*JOB, "stages=[correlate]", "correlate.policies=4", cwd=searched)
    rows = read_lines(searched / "run/correlate.jsonl")
    assert len({tuple(row["widths"]) for row in rows}) == 4
    assert sorted(row["return"] for row in rows) == [row["return"] for row in rows]
    assert all(0 <= row[name] <= 100 for row in rows for name in ("top1_pruned", "top1_finetuned"))
    assert all(row["macs_ratio"] <= 0.5 for row in rows)
    facts = read_json(searched / "run/stages/correlate.json")
    assert (facts["policies"], facts["epochs"]) == (4, 1)
    assert (searched / "run/strategy.json").read_bytes() == strategy
    first = read_json(searched / "run/stages/evaluate.json")["pruned"]["top1"]
    best = max(rows, key=lambda row: row["return"])
    assert best["top1_pruned"] == first  # the run's own strategy, carried out by another stage

    path = searched / "run/correlate.jsonl"
    path.write_text("".join(json.dumps({**row, "top1_pruned": 1.5}) + "\n" for row in rows[:2]))
    done(*JOB, "stages=[correlate]", "correlate.policies=4", cwd=searched)  # as after a kill
    again = read_lines(path)
    assert [row["top1_pruned"] for row in again[:2]] == [1.5, 1.5]
    assert again[2:] == rows[2:]


def test_a_search_of_too_few_networks_is_refused_before_any_work(tmp_path):
    cwd, stages = workspace(tmp_path), "stages=[train,search,correlate]"
    for agent, count in (("greedy", 1), ("random", 2)):
        words = [word for word in JOB if not word.startswith("agent")]
        base = composed(*words, f"agent={agent}", "agent.episodes=2", stages)
        told = f"agent={agent} with agent.episodes=2 judges {count}; expected an agent that searches"
        assert told in check_error(base, cwd=cwd)


def test_rows_of_another_reward_get_the_returns_of_this_search(monkeypatch, tmp_path):
    monkeypatch.setattr("experiments.stages.measuring.trials._made_of", lambda run: "the same training")
    judged, shape = iter([{"top1": 60.0}]), {"widths": [int], "return": float, "top1": float}
    for value, found in ((0.5, False), (-2.0, True)):
        point, run = {"widths": [8, 8], "return": value}, SimpleNamespace(looked_up=False)
        (row,) = tried(run, [point], tmp_path / "rows.jsonl", shape, lambda widths: next(judged), "x")
        assert (row["return"], row["top1"], run.looked_up) == (value, 60.0, found)


def test_policies_are_spread_over_the_returns_and_within_the_budget():
    episodes = [
        {"return": value, "widths": [value], "phase": phase}
        for value, phase in [
            (5, "search"),
            (1, "warmup"),
            (9, "relaxed"),
            (3, "search"),
            (5, "search"),
            (4, "search"),
        ]
    ]
    assert [point["return"] for point in policies(episodes, 3)] == [1, 3, 5]
    with pytest.raises(AmcError, match="at least 3"):
        policies(episodes[:2], 3)


def test_correlations_by_hand():
    rows = [{"return": -1 / i, "top1_pruned": 10.0 * i, "top1_finetuned": -i} for i in range(1, 8)]
    same = [{**row, "top1_finetuned": 5.0} for row in rows]
    assert set(correlations(same)) == {"return ~ top1_pruned"}
    assert correlations(rows) == {
        "return ~ top1_pruned": pytest.approx((1, 1, 1)),
        "return ~ top1_finetuned": pytest.approx((-1, -1, -1)),
        "top1_pruned ~ top1_finetuned": pytest.approx((-1, -1, -1)),
    }


def test_too_few_policies_are_one_line(searched):
    before = (searched / "run/search.jsonl").stat().st_mtime_ns
    asked = amc(*JOB, "stages=[search,correlate]", "correlate.policies=2", cwd=searched)
    refused(asked, "correlate.policies is 2")
    assert (searched / "run/search.jsonl").stat().st_mtime_ns == before
