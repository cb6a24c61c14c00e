"""The best few networks of a search, trained for a short time; the best of them wins."""

import json
import shutil

import pytest

from experiments.config.stages import with_latency
from experiments.stages.measuring.trials import different
from experiments.stages.policies.choose import candidates
from tests.experiments.helpers import TINY, amc, done, read_json, read_lines, refused, workspace

JOB = (*TINY, "agent=random", "agent.episodes=8", "budget.round_to=1", "run_dir=run", "data.unseen=32")
CHOOSE = ("choose.candidates=3", "stages=[choose,prune,report]")


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    cwd = workspace(tmp_path_factory.mktemp("choose"))
    done(*JOB, "stages=[train,search,prune]", cwd=cwd)
    return cwd


def kept(cwd):
    return [group["kept"] for group in read_json(cwd / "run/strategy.json")["groups"]]


@pytest.mark.slow
def test_the_network_that_is_best_after_training_becomes_the_strategy(searched):
    path = searched / "run/choose.jsonl"
    out = done(*JOB, *CHOOSE, cwd=searched).out
    rows, facts = read_lines(path), read_json(searched / "run/stages/choose.json")
    episodes = read_lines(searched / "run/search.jsonl")
    returns = sorted({tuple(e["widths"]): e["return"] for e in episodes}.values(), reverse=True)
    assert [row["return"] for row in rows] == returns[:3]
    assert (facts["images"], facts["epochs"], len(facts["candidates"])) == ("unseen images", 1, 3)
    assert f"number {facts['chosen'] + 1} of the 3 best networks" in out

    # As if the last of them had done best: it is taken from the file, and pruned.
    edited = [{**row, "top1": 50.0 + place} for place, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in edited))
    former = read_json(searched / "run/strategy.json")
    former["provenance"] |= {"repaired_from": [8, 16, 8], "reached": {"macs": 0.1, "latency": 0.2}}
    (searched / "run/strategy.json").write_text(json.dumps(former))
    done(*JOB, *CHOOSE, cwd=searched)
    assert "choose" in read_json(searched / "run/report.json")
    assert {"repaired_from", "reached"}.isdisjoint(read_json(searched / "run/strategy.json")["provenance"])
    assert read_json(searched / "run/stages/choose.json")["chosen"] == 2
    assert kept(searched) == rows[2]["widths"] != rows[0]["widths"]
    strategy = read_json(searched / "run/strategy.json")
    assert (strategy["provenance"]["chosen_from"], strategy["provenance"]["chosen_top1"]) == (3, 52.0)
    own = next(episode for episode in episodes if episode["widths"] == rows[2]["widths"])
    told = [strategy["provenance"][name] for name in ("value", "episode", "search_val_top1")]
    assert told == [own["return"], own["episode"], own["top1"]]
    assert strategy["macs_ratio"] <= 0.5
    assert read_json(searched / "run/report.json")["macs_ratio"] == strategy["macs_ratio"]
    page = (searched / "run/report.html").read_text()
    assert "Best of the search" in page
    assert "unseen images after 1 epochs, %" in page

    # Other settings of the training make it judge again.
    done(*JOB, *CHOOSE, "finetune.lr=0.001", cwd=searched)
    assert all(row["top1"] != old["top1"] for row, old in zip(read_lines(path), edited, strict=True))

    # So do other batches, which train otherwise.
    former = read_lines(path)
    done(*JOB, *CHOOSE, "finetune.lr=0.001", "data.batch_size=8", cwd=searched)
    assert all(row["made_of"] != old["made_of"] for row, old in zip(read_lines(path), former, strict=True))

    # A new search has not been chosen from.
    done(*JOB, "stages=[search]", "seed=1", cwd=searched)
    assert not (searched / "run/stages/choose.json").exists()


def test_a_search_of_other_channel_groups_is_not_chosen_from(searched, tmp_path):
    cwd = shutil.copytree(searched, tmp_path / "cwd")
    fewer = amc(*JOB, "compressor.exclude=['0']", "stages=[choose]", cwd=cwd)
    refused(fewer, "search.jsonl is about 3 channel groups, the run has 2", "Run stages=[search] again")
    path = cwd / "run/stages/search.json"
    path.write_text(json.dumps({**read_json(path), "group_names": ["0", "3", "7"]}))
    others = amc(*JOB, "stages=[correlate]", cwd=cwd)
    refused(others, "is about other channel groups (7) than the run has now", "Run stages=[search] again")


@pytest.mark.slow
def test_a_search_by_unseen_images_goes_on_after_a_network_was_chosen_that_was_not_judged_on_them(tmp_path):
    cwd, job = workspace(tmp_path), (*JOB, "agent.select=held_out", "choose.candidates=8", "choose.epochs=0")
    done(*job, "stages=[train,search,choose]", cwd=cwd)
    judged = [e["widths"] for e in read_lines(cwd / "run/search.jsonl") if "held_out" in e]
    rows = read_lines(cwd / "run/choose.jsonl")
    edited = [{**row, "top1": 0.0 if row["widths"] in judged else 50.0} for row in rows]
    assert any(row["top1"] for row in edited)
    (cwd / "run/choose.jsonl").write_text("".join(json.dumps(row) + "\n" for row in edited))
    done(*job, "stages=[choose]", cwd=cwd)
    provenance = read_json(cwd / "run/strategy.json")["provenance"]
    assert provenance["select"] == "held_out"
    assert "held_out" not in provenance
    done(*job, "stages=[search]", cwd=cwd)
    assert "held_out" in read_json(cwd / "run/strategy.json")["provenance"]


def test_equal_widths_and_relaxed_episodes_are_no_candidates():
    episodes = [
        {"return": value, "widths": [width], "phase": phase}
        for value, width, phase in [(1, 4, "search"), (9, 8, "relaxed"), (1, 4, "search"), (2, 3, "warmup")]
    ]
    assert different(episodes) == [{"return": 1, "widths": [4]}, {"return": 2, "widths": [3]}]


def test_the_winner_of_the_search_is_the_first_to_be_tried():
    returns, scores = [1.0, 4.0, 4.0, 3.0, 2.0], {0: 0.5, 1: 0.1, 3: 0.3}
    episodes = [
        {"episode": place, "return": value, "widths": [place], "phase": "search"}
        | ({"held_out": scores[place]} if place in scores else {})
        for place, value in enumerate(returns)
    ]

    def tried(record, *, by_unseen):
        return [point["widths"][0] for point in candidates(episodes, record, by_unseen=by_unseen)]

    assert tried({}, by_unseen=False) == [1, 2, 3, 4, 0]
    assert tried({"best_episode": 2, "best_return": 4.0}, by_unseen=False) == [2, 1, 3, 4, 0]
    assert tried({}, by_unseen=True) == [0, 3, 1, 2, 4]
    assert tried({"best_episode": 3, "best_return": 3.0}, by_unseen=True) == [3, 0, 1, 2, 4]


def test_latencies_are_verified_after_the_choice():
    assert with_latency(["search", "choose", "prune"], ["latency"], profiled=True) == [
        *("search", "choose", "verify", "prune"),
    ]


def test_latencies_are_verified_before_anything_is_made_of_the_strategy():
    asked = ["profile", "search", "prune", "verify", "quantize"]
    assert with_latency(asked, ["latency"], profiled=True) == [
        *("profile", "search", "verify", "prune", "quantize"),
    ]
    assert with_latency(["train", "inspect", "verify"], ["latency"], profiled=True)[-1] == "verify"
    assert with_latency(["choose", "prune"], ["latency"], profiled=True) == ["choose", "verify", "prune"]
    asked = ["profile", "train", "evaluate", "search", "verify", "prune"]
    assert with_latency(asked, ["latency"], profiled=False) == asked
    asked.remove("verify")
    assert with_latency(asked, ["latency"], profiled=False)[-3:] == ["search", "verify", "prune"]


def test_impossible_numbers_are_one_line(searched):
    refused(amc(*JOB, "stages=[choose]", "choose.candidates=0", cwd=searched), "choose.candidates=0")
