"""Whether a score can be trusted: networks judged on images that nothing else uses."""

import json
import re
import shutil

import pytest

import amc as library
from amc.errors import SettingError
from experiments.run.proxies import correlations, predicts
from experiments.statistics import Interval, bootstrap_correlation
from tests.experiments.helpers import (
    TINY,
    amc,
    check_error,
    composed,
    done,
    interrupt,
    read_json,
    read_lines,
    refused,
    timeless,
    workspace,
)

JOB = (
    *TINY, "data.unseen=64", "train.epochs=20", "train.lr=0.05", "budget.round_to=1", "reward=agreement",
    "run_dir=run", "proxies.networks=8",
)  # fmt: skip
LONG = ("stages=[search]", "agent.episodes=40", "agent.warmup_episodes=5")


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    cwd = workspace(tmp_path_factory.mktemp("proxies"))
    outcome = done(*JOB, "stages=[train,proxies,search,prune,report]", cwd=cwd)
    return cwd, outcome.out


def copied(judged, tmp_path):
    return shutil.copytree(judged[0], tmp_path / "cwd")


def test_networks_are_judged_on_both_parts_and_their_scores_correlated(judged):
    cwd, out = judged
    facts = read_json(cwd / "run/stages/proxies.json")
    rows = facts["rows"]
    assert (facts["networks"], facts["images"]) == (8, {"search_val": 32, "unseen": 64})
    assert len({tuple(row["widths"]) for row in rows}) == 8
    search = {tuple(line["widths"]): line for line in read_lines(cwd / "run/evaluations.jsonl")}
    unseen = {tuple(line["widths"]): line for line in read_lines(cwd / "run/unseen.jsonl")}
    for row in rows:
        own, other = search[tuple(row["widths"])], unseen[tuple(row["widths"])]
        assert own["macs_ratio"] <= 0.5
        assert row["search"]["reward"] == row["search"]["agreement"] == own["agreement"]
        assert (row["search"]["accuracy"], row["search"]["loss"]) == (own["top1"], -own["loss"])
        assert (row["unseen"]["accuracy"], row["unseen"]["likeness"]) == (other["top1"], other["likeness"])
    assert set(facts["spearman"]) == {"reward", "accuracy", "loss", "agreement", "likeness"}
    found = bootstrap_correlation(
        [row["search"]["loss"] for row in rows], [row["unseen"]["agreement"] for row in rows]
    )
    assert facts["spearman"]["loss"]["agreement"] == [found.value, found.low, found.high]
    low = facts["spearman"]["reward"]["accuracy"]
    assert facts["trusted"] == (low is not None and low[1] > 0)
    assert out.count("proxies: ") == 7
    assert f"proxies: {facts['verdict']}" in out


def test_the_report_says_whether_the_score_can_be_trusted(judged):
    cwd, out = judged
    facts = read_json(cwd / "run/stages/proxies.json")
    assert read_json(cwd / "run/report.json")["proxies"]["verdict"] == facts["verdict"]
    page = (cwd / "run/report.html").read_text()
    assert "Trust in the score" in page
    assert facts["verdict"].split(" (")[0] in page
    assert 'id="trust-figure_1"' in page
    assert (f"search: {facts['verdict']}" in out) == (not facts["trusted"])
    assert (f"report: {facts['verdict']}" in out) == (not facts["trusted"])


def test_the_score_of_another_search_is_not_judged_in_the_report(judged, tmp_path):
    cwd = copied(judged, tmp_path)
    path = cwd / "run/stages/proxies.json"
    facts = read_json(path)
    searched = read_json(cwd / "run/stages/search.json")
    for name in ("reward", "limits", "fingerprint"):
        assert facts[name] == searched[name]
    path.write_text(json.dumps({**facts, "limits": {"macs": 0.9}, "trusted": False}))
    out = done(*JOB, "stages=[report]", cwd=cwd).out
    assert "proxies.json is left out: it is about another search" in out
    assert f"report: {facts['verdict']}" not in out
    assert "proxies" not in read_json(cwd / "run/report.json")


@pytest.mark.slow
def test_an_untrusted_score_is_told_by_the_stage_the_search_and_the_report(judged, tmp_path):
    cwd = copied(judged, tmp_path)
    path = cwd / "run/unseen.jsonl"
    same = [{**line, "top1": 50.0} for line in read_lines(path)]
    path.write_text("".join(json.dumps(line) + "\n" for line in same))
    out = done(*JOB, "stages=[proxies,search,prune,report]", cwd=cwd).out
    facts = read_json(cwd / "run/stages/proxies.json")
    assert facts["trusted"] is False
    assert facts["spearman"]["reward"]["accuracy"] is None
    assert "agent=greedy" in facts["verdict"]
    for stage in ("proxies", "search", "report"):
        assert f"{stage}: {facts['verdict']}" in out
    assert facts["verdict"] not in done(*JOB, "stages=[search]", cwd=cwd).out


@pytest.mark.slow
def test_a_killed_stage_goes_on_with_the_next_network(judged, tmp_path):
    cwd = copied(judged, tmp_path)
    whole = read_json(cwd / "run/stages/proxies.json")
    for name in ("evaluations.jsonl", "unseen.jsonl"):
        path = cwd / "run" / name
        lines = path.read_text().splitlines()[:4]
        path.write_text("\n".join(lines) + "\n" + lines[0][:30])  # the last line is half-written
    (cwd / "run/unseen.jsonl.part").write_text("\n".join(lines))
    kept = read_lines(cwd / "run/unseen.jsonl.part")
    done(*JOB, "stages=[proxies]", cwd=cwd)
    lines = read_lines(cwd / "run/unseen.jsonl")
    assert lines[:4] == kept
    assert len({tuple(line["widths"]) for line in lines}) == len(lines) >= 8
    again = read_json(cwd / "run/stages/proxies.json")
    assert {**again, "stage_seconds": 0} == {**whole, "stage_seconds": 0, "resumed": True}


@pytest.mark.slow
def test_evaluations_of_other_unseen_images_are_not_mixed(judged, tmp_path):
    cwd = copied(judged, tmp_path)
    done(*JOB, "stages=[train,proxies]", "data.unseen=48", cwd=cwd)
    prints = {line["fingerprint"] for line in read_lines(cwd / "run/unseen.jsonl")}
    assert len(prints) == 2
    assert read_json(cwd / "run/stages/proxies.json")["images"]["unseen"] == 48


def search(cwd, *arguments, folder="run"):
    """Run a long search and return its episodes, its facts and the strategy's provenance."""
    done(*JOB, *LONG, *arguments, cwd=cwd)
    run = cwd / folder
    facts = read_json(run / "stages/search.json")
    return read_lines(run / "search.jsonl"), facts, read_json(run / "strategy.json")["provenance"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "agent",
    [
        *("ddpg", "random"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("evolution", "thompson", "netadapt", "tpe")
        ),
    ],
)
def test_patience_ends_the_search_of_every_agent(judged, tmp_path, agent):
    cwd = copied(judged, tmp_path)
    lines, facts, _ = search(cwd, f"agent={agent}", "agent.patience=4", "agent.episodes=60")
    within = [line for line in lines if line["phase"] != "relaxed"]
    measured = [line for line in within if "held_out" in line]
    running = -float("inf")
    for line in within:
        assert ("held_out" in line) == (line["return"] > running)
        running = max(running, line["return"])
    best = max(measured, key=lambda line: line["held_out"])
    assert facts["held_out_best"] == best["held_out"]
    assert len(lines) == facts["episodes"]
    idle = len(within) - 1 - within.index(best)
    if facts["stopped_after"] is None:
        assert idle < 4
    else:
        assert (facts["stopped_after"], idle) == (len(lines), 4)
        assert len(lines) < 60
    assert (cwd / "run/agent.zip").exists() == (agent == "ddpg")
    assert facts["best_return"] == running


def test_a_search_keeps_the_network_that_is_best_on_the_unseen_images(judged, tmp_path):
    cwd = copied(judged, tmp_path)
    lines, facts, provenance = search(cwd, "agent=random", "agent.select=held_out", "seed=3")
    assert len(lines) == 40  # without patience it goes on to its end
    measured = [line for line in lines if "held_out" in line]
    best = max(measured, key=lambda line: line["held_out"])
    assert best is not measured[-1], "this seed cannot tell the two selections apart"
    assert (facts["best_episode"], facts["best_return"]) == (best["episode"], best["return"])
    assert (provenance["held_out"], provenance["value"]) == (best["held_out"], best["return"])
    assert facts["stopped_after"] is None
    unseen = {tuple(line["widths"]): line["agreement"] for line in read_lines(cwd / "run/unseen.jsonl")}
    assert all(line["held_out"] == unseen[tuple(line["widths"])] for line in measured)

    by_return, other, own = search(
        cwd, "agent=random", "agent.patience=1000", "agent.select=search", "seed=3"
    )
    assert [line["return"] for line in by_return] == [line["return"] for line in lines]
    assert other["best_episode"] == measured[-1]["episode"]
    assert own["held_out"] == measured[-1]["held_out"]


@pytest.mark.slow
def test_an_ordinary_search_says_nothing_of_unseen_images(judged, tmp_path):
    lines, facts, provenance = search(copied(judged, tmp_path))
    assert not any("held_out" in line for line in lines)
    assert not {"held_out_best", "stopped_after"} & set(facts)
    assert not {"held_out", "select"} & set(provenance)


@pytest.mark.slow
def test_a_stopped_search_goes_on_to_the_same_result(judged, tmp_path):
    asked = (*JOB, *LONG, "agent.patience=12", "agent.select=held_out", "seed=3")
    whole, part = (copied(judged, tmp_path / name) for name in ("whole", "part"))
    done(*asked, "reward=mynet.score", cwd=whole)
    interrupt(part, 6)
    refused(amc(*asked, "reward=mynet.score", cwd=part), "goes on", status=130)
    (part / "interrupt").unlink()
    done("run_dir=run", cwd=part)
    assert timeless(part / "run/search.jsonl") == timeless(whole / "run/search.jsonl")
    assert (part / "run/strategy.json").read_bytes() == (whole / "run/strategy.json").read_bytes()


@pytest.mark.slow
def test_every_budget_has_its_own_networks(tmp_path):
    cwd = workspace(tmp_path)
    ratios = "budget.macs_ratios=[0.4,0.6]"
    done(*JOB, ratios, "stages=[train,proxies]", "proxies.networks=5", "train.epochs=1", cwd=cwd)
    found = [read_json(cwd / f"run/macs_{ratio}/stages/proxies.json") for ratio in ("0.40", "0.60")]
    assert all(facts["networks"] == 5 for facts in found)
    assert found[0]["rows"][0]["widths"] != found[1]["rows"][0]["widths"]


@pytest.mark.slow
def test_networks_are_drawn_where_there_are_no_error_curves(tmp_path):
    cwd = workspace(tmp_path)
    done(*JOB, "agent=uniform", "compressor.order=l1", "stages=[train,proxies]", cwd=cwd)
    assert read_json(cwd / "run/stages/proxies.json")["networks"] == 8


def test_impossible_requests_are_refused_before_any_work(tmp_path):
    cwd = workspace(tmp_path)
    job = composed(*JOB, "stages=[train,proxies,search]")
    for asked in ("stages=[proxies]", "agent.patience=3", "agent.select=held_out"):
        message = check_error(job, "data.unseen=0", "stages=[search]", asked, cwd=cwd)
        assert "data.unseen=1000" in message
    assert "proxies.networks is 4" in check_error(job, "proxies.networks=4", cwd=cwd)
    assert "proxies.spread is 0" in check_error(job, "proxies.spread=0", cwd=cwd)
    assert "agent.patience is -1" in check_error(job, "agent.patience=-1", cwd=cwd)
    assert "agent.select is 'test'" in check_error(job, "agent.select=test", cwd=cwd)
    sparse = check_error(job, "agent.patience=3", "stages=[sparsify]", cwd=cwd)
    assert "agent.patience=3" in sparse
    assert "sparsify" in sparse


@pytest.mark.slow
def test_fewer_networks_than_asked_for_are_enough_for_a_correlation(judged, tmp_path, monkeypatch):
    cwd = copied(judged, tmp_path)
    monkeypatch.setattr("experiments.run.proxies.DRAWS", 40)  # some of which repeat a network
    out = done(*JOB, "proxies.networks=40", "stages=[proxies]", cwd=cwd).out
    (found,) = re.findall(
        r"only (\d+) different networks of this budget were found, and 40 are asked for", out
    )
    assert 5 <= int(found) < 40
    assert read_json(cwd / "run/stages/proxies.json")["networks"] == int(found)
    monkeypatch.setattr("experiments.run.proxies.DRAWS", 4)
    outcome = amc(*JOB, "stages=[proxies]", cwd=cwd)
    refused(outcome, "expected at least 5", "proxies.networks", "a larger proxies.spread")


def test_a_network_that_has_seen_the_images_is_refused(judged, tmp_path):
    cwd = copied(judged, tmp_path)
    outcome = amc(*JOB, "stages=[proxies]", "data.unseen=65", cwd=cwd)
    refused(outcome, "97 images", "trained with 96 held out")


def test_a_search_in_python_has_no_unseen_images():
    splits = library.data.synthetic(num_classes=4, image_size=8)
    task = library.CompressionTask(
        network(), splits.calibration, splits.search_val, macs_ratio=0.5, progress=False
    )
    with pytest.raises(SettingError, match=r"agent\.patience=3 .* data\.unseen"):
        task.search("random", episodes=2, patience=3)


def network():
    """Return a small untrained network."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def test_correlations_of_scores_that_do_not_vary_are_none():
    scores = [{"one": float(i), "same": 1.0} for i in range(6)]
    truth = [{"accuracy": float(-i), "agreement": float(i), "likeness": 2.0} for i in range(6)]
    found = correlations(scores, truth)
    assert found["same"] == {"accuracy": None, "agreement": None, "likeness": None}
    assert found["one"]["likeness"] is None
    assert found["one"]["accuracy"].value == pytest.approx(-1)
    assert predicts(found["one"]["agreement"])
    assert not predicts(found["one"]["accuracy"])
    assert not predicts(None)
    assert not predicts(Interval(0.4, 0.0, 0.8))
