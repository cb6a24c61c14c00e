from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from amc import Strategy
from amc.candidate import builder
from amc.strategy import GroupWidth
from experiments.config.budgets import folder_name
from experiments.job import row as row_of
from experiments.job import table
from experiments.report import charts
from experiments.report.text import number
from experiments.run.folder import RunFolder
from experiments.run.fronts import FILES, SCORES, fronts, write_strategies
from experiments.run.run import open_run
from tests.experiments.helpers import (
    TINY,
    amc,
    artifacts,
    check_error,
    composed,
    done,
    inside,
    interrupt,
    read_json,
    read_lines,
    refused,
    spawn,
    timeless,
    workspace,
)
from tests.experiments.report.test_report import Page

COSTS = ("macs", "params")
JOB = (
    *TINY, "data.search_val=128", "agent.episodes=16", "agent.warmup_episodes=4", "agent.acts=ratios",
    "budget.round_to=1", "reward=agreement", "finetune.epochs=1",
)  # fmt: skip
SEVERAL = (*JOB, "budget.macs_ratios=[0.4,0.8]", "run_dir=run")
PARTS = {"macs_0.40": 0.4, "macs_0.80": 0.8}
ARTIFACTS = {
    ".hydra/config.yaml", ".hydra/overrides.yaml", "provenance.json", "search.jsonl", "strategy.json",
    "model.safetensors", "exports/model.onnx", "report.json", "report.html", "agent.zip", "pareto.json",
    "dense.safetensors", "overrides.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A current directory with a finished run of one budget, 0.8 of the MACs."""
    cwd = workspace(tmp_path_factory.mktemp("alone"))
    stages = "stages=[train,search,prune,finetune,report]"
    done(*JOB, "budget.macs_ratio=0.8", stages, "run_dir=run", cwd=cwd)
    return cwd


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, int]:
    """A current directory with a run of two budgets, its output, and how often moments were collected."""
    cwd = workspace(tmp_path_factory.mktemp("several"))
    collect, calls = builder.collect_moments, []

    def counting(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return collect(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "collect_moments", counting)
        outcome = done(*SEVERAL, cwd=cwd)
    return cwd, outcome.out, len(calls)


@pytest.fixture
def again(several: tuple[Path, str, int], tmp_path: Path) -> Path:
    """A copy of the current directory with the run of two budgets."""
    return shutil.copytree(several[0], tmp_path / "again")


def assert_front(front: list[dict[str, Any]], points: list[dict[str, Any]], cost: str, score: str) -> None:
    """Check a front against its definition."""
    places = {(point[cost], point[score]) for point in points}
    beaten = {
        (paid, got)
        for paid, got in places
        if any(p <= paid and g >= got and (p, g) != (paid, got) for p, g in places)
    }
    assert [(point[cost], point[score]) for point in front] == sorted(places - beaten)


# --- the Pareto fronts of a run


def test_pareto_json_holds_the_fronts_of_the_search(alone: Path) -> None:
    found, episodes = read_json(alone / "run/pareto.json"), read_lines(alone / "run/search.jsonl")
    assert found["version"] == 1
    for cost in COSTS:
        for score in SCORES:
            assert_front(found[cost][score], episodes, cost, score)
            for point in found[cost][score]:
                line = episodes[point["episode"]]
                assert {
                    key: value for key, value in point.items() if key != "strategy"
                }.items() <= line.items()
                assert {"widths", "agreement", "macs_ratio", "params_ratio"} <= point.keys()
    assert len(found["macs"]["return"]) > 2


def test_strategies_of_the_front_are_written_and_named(alone: Path) -> None:
    found = read_json(alone / "run/pareto.json")
    named = {
        point["strategy"]: point for cost in COSTS for point in found[cost]["return"] if "strategy" in point
    }
    assert {f"pareto/{path.name}" for path in (alone / "run/pareto").iterdir()} == named.keys()
    for name, point in named.items():
        strategy = Strategy.load(alone / "run" / name)
        assert list(strategy.widths) == point["widths"]
        assert (strategy.macs_ratio, strategy.params_ratio) == (point["macs_ratio"], point["params_ratio"])
        assert strategy.provenance["value"] == point["return"]


def test_a_strategy_of_the_front_is_pruned_and_judged(alone: Path, tmp_path: Path) -> None:
    cwd, run = workspace(tmp_path), alone / "run"
    weights, strategy = f"model.checkpoint={run}/dense.safetensors", f"strategy={run}/pareto/macs_01.json"
    stages = "stages=[train,prune,evaluate]"
    done(*JOB, weights, strategy, stages, "budget.macs_ratio=0.8", "run_dir=new", cwd=cwd)
    facts, point = (
        read_json(cwd / "new/stages/prune.json"),
        read_json(run / "pareto.json")["macs"]["return"][1],
    )
    assert (facts["macs"], facts["params"]) == (point["macs"], point["params"])
    assert read_json(cwd / "new/stages/evaluate.json")["pruned"]["macs"] == point["macs"]


def fronts_of(page: Path) -> list[str]:
    """Return the charts of Pareto fronts of a page."""
    charts = re.findall(r"<figure>.*?</figure>", page.read_text(), re.DOTALL)
    return [chart for chart in charts if "The best networks at any number of" in chart]


def assert_dense_is_drawn(chart: str, dense: dict[str, float]) -> None:
    """Check that the score of the dense network is a line across the chart, within it, and in the legend."""
    score = "return" if ">return<" in chart else "top1"
    value = number(dense[score])
    (line,) = re.findall(r'<line class="level ink" ([^>]*)><title>([^<]*)</title></line>', chart)
    places = dict(re.findall(r'(\w+)="([\d.-]+)"', line[0]))
    assert line[1] == f"dense: {value}"
    assert float(places["x2"]) - float(places["x1"]) > charts.WIDTH / 2
    assert places["y1"] == places["y2"]
    assert 0 < float(places["y1"]) < charts.HEIGHT
    assert f'<i class="level ink"></i>dense {value}</span>' in chart


def test_report_shows_the_fronts_with_the_dense_network(alone: Path) -> None:
    text = (alone / "run/report.html").read_text()
    page = Page(text)
    assert "Has the search converged?" in page.headings
    assert max(page.ids.values(), default=1) == 1
    for label in ("Pareto front", "judged", "chosen", "parameters, % of dense"):
        assert f">{label}<" in text
    search = read_json(alone / "run/stages/search.json")
    drawn = fronts_of(alone / "run/report.html")
    assert len(drawn) >= 2
    for chart in drawn:
        assert_dense_is_drawn(chart, {"top1": search["dense_top1"], "return": search["dense_return"]})


def test_relaxed_episodes_count_for_the_front() -> None:
    same = {"agreement": -0.1, "params": 5, "macs_ratio": 1.0, "params_ratio": 1.0, "widths": [1]}
    points: list[dict[str, Any]] = [
        {**same, "episode": 0, "phase": "search", "macs": 10, "return": 0.1, "top1": 10.0},
        {**same, "episode": 1, "phase": "relaxed", "macs": 20, "return": 0.2, "top1": 20.0},
        {**same, "episode": 2, "phase": "search", "macs": 15, "return": 0.05, "top1": 5.0},
    ]
    assert [point["episode"] for point in fronts(points)["macs"]["return"]] == [0, 1]


def test_strategy_files_are_few_and_replace_those_of_an_earlier_front(tmp_path: Path) -> None:
    def at(point: Any) -> Strategy:
        return Strategy((GroupWidth("a", 100, *point["widths"]),), 0.5, 0.5, seed=0)

    def points(count: int) -> list[dict[str, Any]]:
        same = {"agreement": 0.0, "macs_ratio": 0.5, "params_ratio": 0.5}
        return [
            {**same, "episode": i, "return": i / 100, "top1": float(i), "macs": i, "params": i, "widths": [i]}
            for i in range(1, count + 1)
        ]

    for count, expected in ((60, FILES), (3, 3), (5, 5)):
        found = write_strategies(tmp_path, fronts(points(count)), at)
        paths = sorted((tmp_path / "pareto").iterdir())
        assert [path.name for path in paths] == [f"{c}_{i:02}.json" for c in COSTS for i in range(expected)]
        widths = [Strategy.load(path).widths[0] for path in paths[:expected]]
        assert (widths[0], widths[-1]) == (1, count)
        assert widths == [p["widths"][0] for p in found["macs"]["return"] if "strategy" in p]


def test_a_search_of_other_groups_than_the_runs(alone: Path, tmp_path: Path) -> None:
    cwd = shutil.copytree(alone, tmp_path / "cwd")
    lines = (cwd / "run/search.jsonl").read_text().replace('"widths": [', '"widths": [1, ')
    (cwd / "run/search.jsonl").write_text(lines)
    refused(amc("run_dir=run", "stages=[report]", cwd=cwd), "4 channel groups", "has 3", "stages=[search]")


# --- several budgets


def test_each_budget_has_a_complete_run_folder_within_it(several: tuple[Path, str, int]) -> None:
    for name, ratio in PARTS.items():
        part = several[0] / "run" / name
        assert {file for file in ARTIFACTS if not (part / file).is_file()} == set()
        assert all(0 < line["macs_ratio"] <= ratio for line in read_lines(part / "search.jsonl"))
        assert read_json(part / "strategy.json")["budget"]["ratio"] == ratio
        assert 0 < read_json(part / "report.json")["macs_ratio"] <= ratio


def test_parts_that_no_budget_changes_are_made_once(several: tuple[Path, str, int]) -> None:
    cwd, _, collected = several
    assert collected == 1
    dense = (cwd / "run/dense.safetensors").read_bytes()
    for name in PARTS:
        assert (cwd / "run" / name / "dense.safetensors").read_bytes() == dense
        folders = [cwd / place for place in ("run", f"run/{name}")]
        commits = [read_json(each / "provenance.json")["stage_commits"]["train"] for each in folders]
        assert commits[0] == commits[1]
        train = [each / "stages/train.json" for each in folders]
        assert train[0].read_bytes() == train[1].read_bytes()
        assert not (cwd / "run" / name / "evaluations.jsonl").exists()
    assert read_json(cwd / "run/stages/train.json")["trained_here"] is True


def test_one_of_several_budgets_gives_the_result_of_a_single_one(
    several: tuple[Path, str, int], alone: Path
) -> None:
    part, run = several[0] / "run/macs_0.80", alone / "run"
    assert (part / "strategy.json").read_bytes() == (run / "strategy.json").read_bytes()
    assert timeless(part / "search.jsonl") == timeless(run / "search.jsonl")
    for name in ("pruned", "model"):
        mine, theirs = (load_file(folder / f"{name}.safetensors") for folder in (part, run))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    names = {path.relative_to(part / "pareto") for path in (part / "pareto").iterdir()}
    assert all((part / "pareto" / n).read_bytes() == (run / "pareto" / n).read_bytes() for n in names)


def test_a_second_search_reuses_evaluations_of_the_first(tmp_path: Path) -> None:
    """Neither budget cuts much, and random search meets few widths: the second evaluates next to nothing."""
    cwd = workspace(tmp_path)
    wide = ("budget.macs_ratios=[1.0,0.95]", "budget.fit=cut")
    coarse = ("budget.round_to=4", *wide, "agent=random", "stages=[train,search]")
    done(*JOB, *coarse, "run_dir=run", cwd=cwd)
    known = [tuple(line["widths"]) for line in read_lines(cwd / "run/evaluations.jsonl")]
    tried = [
        {tuple(line["widths"]) for line in read_lines(cwd / f"run/macs_{name}/search.jsonl")}
        for name in ("1.00", "0.95")
    ]
    assert set(known) == tried[0] | tried[1]
    assert len(known) == len(set(known)) < len(tried[0]) + len(tried[1])


def test_the_folder_of_a_budget_knows_what_its_network_was_trained_on(again: Path, tmp_path: Path) -> None:
    for place in ("run", "run/macs_0.40"):
        asked = amc(f"run_dir={place}", "data.unseen=20", "stages=[proxies]", cwd=again)
        refused(asked, "data.search_val and data.unseen are 148 images", "with 128 held out")
    job, part = (RunFolder.made(tmp_path / name) for name in ("job", "job/macs_0.40"))
    for path in (job.dense, job.trained_on):
        path.write_bytes(b"pictures")
    part.record("train", {"held_out": 9})
    part.take_dense(job)
    assert part.trained_on.read_bytes() == part.dense.read_bytes() == b"pictures"
    assert part.recorded("train") is None
    job.trained_on.unlink()
    part.take_dense(job)
    assert not part.trained_on.exists()


def test_a_strategy_that_no_budget_takes_over_is_refused(again: Path) -> None:
    shutil.copy(again / "run/macs_0.40/strategy.json", again / "one.json")
    asked = amc("run_dir=run", "strategy=one.json", "stages=[finetune,report]", cwd=again)
    refused(asked, "strategy=one.json is another than that of", "macs_0.80", "add prune to stages")


def test_the_summary_has_the_accuracy_of_the_network_that_was_pruned(again: Path) -> None:
    shutil.copy(again / "run/macs_0.40/strategy.json", again / "one.json")
    before = read_json(again / "run/provenance.json")["stage_commits"]
    assert "train" in before
    done("run_dir=run", "strategy=one.json", "stages=[prune]", cwd=again)
    assert read_json(again / "run/provenance.json")["stage_commits"] == before
    for row in read_json(again / "run/budgets.json")["budgets"]:
        log = read_lines(again / "run" / row["folder"] / "search.jsonl")
        found = [line["top1"] for line in log if line["widths"] == row["widths"]][:1]
        assert [row[name] for name in ("top1_search",) if name in row] == found
        assert bool(found) == (row["folder"] == "macs_0.40")


@pytest.mark.slow
def test_the_folder_of_a_budget_is_a_run_of_its_own(again: Path) -> None:
    shown = OmegaConf.create(done("--cfg", "job", "run_dir=run/macs_0.40", cwd=again).out)
    stored = OmegaConf.load(again / "run/macs_0.40/.hydra/config.yaml")
    assert {**shown, "run_dir": ""} == {**stored, "run_dir": ""}
    assert (shown.budget.kind, shown.budget.macs_ratio, shown.budget.macs_ratios) == ("macs", 0.4, [])
    before = artifacts(again / "run/macs_0.40")
    done("run_dir=run/macs_0.40", "stages=[search]", cwd=again)
    after = artifacts(again / "run/macs_0.40")
    assert after["strategy.json"] == before["strategy.json"]
    assert not (again / "run/macs_0.40/macs_0.40").exists()


def test_summary_has_every_budget_and_the_joint_front(several: tuple[Path, str, int]) -> None:
    run = several[0] / "run"
    summary = read_json(run / "budgets.json")
    assert (summary["version"], summary["model"], summary["data"]) == (1, "mynet.make", "fake")
    assert {row["folder"]: row["ratio"] for row in summary["budgets"]} == PARTS
    for row in summary["budgets"]:
        report = read_json(run / row["folder"] / "report.json")
        assert (row["top1_pruned"], row["macs"]) == (report["pruned"]["top1"], report["pruned"]["macs"])
        assert (row["top1_finetuned"], row["speedup"]) == (report["finetuned"]["top1"], report["speedup"])
        assert row["macs_ratio"] == report["macs_ratio"]
        assert (summary["dense"]["top1"], summary["dense"]["macs"]) == (
            report["dense"]["top1"],
            report["dense"]["macs"],
        )
    points = [{"folder": n, **line} for n in PARTS for line in read_lines(run / n / "search.jsonl")]
    for cost in COSTS:
        for score in SCORES:
            assert_front(summary["pareto"][cost][score], points, cost, score)
    assert {point["folder"] for point in summary["pareto"]["macs"]["return"]} == PARTS.keys()
    files = [point for point in summary["pareto"]["macs"]["return"] if "strategy" in point]
    for point in files:
        strategy = Strategy.load(run / point["strategy"])
        assert list(strategy.widths) == point["widths"]
        assert strategy.budget["ratio"] == PARTS[point["folder"]]


@pytest.mark.slow
def test_the_summary_has_the_quantized_networks(again: Path) -> None:
    job = ("run_dir=run", "stages=[quantize,benchmark,report]", "quantize.sensitivity_images=0")
    fast = ("latency.backends=[torch,onnxruntime]", "latency.throughput_batch=0", "latency.memory=false")
    done(*job, *fast, cwd=again)
    summary = read_json(again / "run/budgets.json")
    for row in summary["budgets"]:
        report = read_json(again / "run" / row["folder"] / "report.json")
        assert row["top1_quantized"] == report["quantized"]["top1"]
        timed = {own["backend"]: own["others"].get("quantized") for own in report["latency"]}
        assert row["speedup"] == {"onnxruntime": timed["onnxruntime"]["speedup"]}
    assert table(summary)[0][-2:] == ["quantized", "onnxruntime"]


def test_a_quantized_dense_network_is_not_the_network_of_a_budget(again: Path) -> None:
    config = composed(*JOB, "budget.macs_ratio=0.4", "run_dir=run")
    with inside(again):
        part = open_run(config, Path("run/macs_0.40"))
        part.record("quantize", {"method": "static_int8", "top1": 91.5})
        assert row_of(part)["top1_quantized"] == 91.5
        part.folder.pruned.unlink()
        assert "top1_quantized" not in row_of(part)


def test_summary_is_shown(several: tuple[Path, str, int]) -> None:
    cwd, out, _ = several
    text = (cwd / "run/budgets.html").read_text()
    page = Page(text)
    assert page.headings == [
        "What did each budget give?",
        "The report of each run",
        "How much accuracy for how much cost?",
        "Provenance",
    ]
    assert max(page.ids.values(), default=1) == 1
    assert page.tags.keys().isdisjoint({"img", "link", "iframe"})
    assert page.tags["script"] == 1
    for part in (*PARTS, "Pareto front", "chosen"):
        assert f">{part}<" in text
    lines = out.splitlines()
    place = next(i for i, line in enumerate(lines) if line.split()[:3] == ["MACs", "M", "params"])
    rows = [line.split()[0] for line in lines[place + 1 : place + 4]]
    assert rows == ["dense", *PARTS]


def test_budgets_of_both_kinds(tmp_path: Path) -> None:
    cwd = workspace(tmp_path)
    lists = ("budget.macs_ratios=[0.5]", "budget.params_ratios=[0.5,0.333]")
    done(*JOB, *lists, "agent=uniform", "stages=[train,inspect,search]", "run_dir=run", cwd=cwd)
    summary = read_json(cwd / "run/budgets.json")
    assert [row["folder"] for row in summary["budgets"]] == ["macs_0.50", "params_0.50", "params_0.333"]
    for row in summary["budgets"]:
        assert 0 < row[f"{row['kind']}_ratio"] <= row["ratio"]
        assert not {"top1_pruned", "top1_finetuned"} & row.keys()
    assert (cwd / "run/stages/inspect.json").exists()
    assert not list(cwd.glob("run/*/stages/inspect.json"))


def test_stages_without_a_budget_make_no_folders(tmp_path: Path) -> None:
    done(*SEVERAL, "stages=[inspect]", cwd=workspace(tmp_path))
    assert not list(tmp_path.glob("run/macs_*"))
    assert not (tmp_path / "run/budgets.json").exists()


@pytest.mark.parametrize(
    ("ratio", "name"),
    [
        (0.3, "0.30"),
        (1.0, "1.00"),
        (0.333, "0.333"),
        (0.30001, "0.30001"),
        (0.1 + 0.2, "0.30000000000000004"),
    ],
)
def test_folder_names_differ_for_each_budget(ratio: float, name: str) -> None:
    assert folder_name({"macs": ratio, "params": 0.5}) == f"macs_{name}"


# --- stopped and taken up again


@pytest.mark.slow
def test_a_killed_job_goes_on_to_the_same_result(several: tuple[Path, str, int], tmp_path: Path) -> None:
    cwd, unbroken = workspace(tmp_path), several[0] / "run"
    process = spawn(*SEVERAL, "stages=[train,search,prune,finetune]", cwd=cwd)
    try:
        log = cwd / "run/macs_0.80/search.jsonl"
        deadline = time.monotonic() + 120
        while not (log.exists() and log.read_bytes().count(b"\n") >= 2):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert not (cwd / "run/budgets.json").exists()
    before = (cwd / "run/evaluations.jsonl").read_bytes().rpartition(b"\n")[0]

    done("run_dir=run", cwd=cwd)

    assert (cwd / "run/evaluations.jsonl").read_bytes().startswith(before)
    for name in PARTS:
        mine, theirs = cwd / "run" / name, unbroken / name
        assert (mine / "strategy.json").read_bytes() == (theirs / "strategy.json").read_bytes()
        assert timeless(mine / "search.jsonl") == timeless(theirs / "search.jsonl")
        weights = [load_file(folder / "model.safetensors") for folder in (mine, theirs)]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])
    widths = [
        [tuple(line["widths"]) for line in read_lines(run / "evaluations.jsonl")]
        for run in (cwd / "run", unbroken)
    ]
    assert widths[0] == widths[1]
    assert len(widths[0]) == len(set(widths[0]))


@pytest.mark.slow
def test_a_stopped_job_names_its_folder_and_goes_on_to_the_same_result(
    several: tuple[Path, str, int], cwd: Path
) -> None:
    interrupt(cwd, 28)  # some episodes into the second search
    line = refused(
        amc(*SEVERAL, "reward=mynet.score", "stages=[train,search]", cwd=cwd),
        f"episodes is in {cwd}/run/macs_0.80/strategy.json",
        f"run_dir={cwd}/run goes on",
        status=130,
    )
    assert "run_dir=" + str(cwd / "run/macs") not in line
    assert read_json(cwd / "run/overrides.json")["unfinished"] == "stages=[train,search]"

    (cwd / "interrupt").unlink()
    done("run_dir=run", cwd=cwd)
    for name in PARTS:
        mine, theirs = cwd / "run" / name, several[0] / "run" / name
        assert timeless(mine / "search.jsonl") == timeless(theirs / "search.jsonl")


@pytest.mark.slow
def test_a_budget_is_added_to_a_finished_job(again: Path) -> None:
    before = read_lines(again / "run/evaluations.jsonl")
    done("run_dir=run", "budget.macs_ratios=[0.4,0.6,0.8]", "stages=[search]", cwd=again)
    after = read_lines(again / "run/evaluations.jsonl")
    assert after[: len(before)] == before
    assert all(line["macs_ratio"] <= 0.6 for line in after[len(before) :])
    rows = read_json(again / "run/budgets.json")["budgets"]
    assert [row["ratio"] for row in rows] == [0.4, 0.6, 0.8]


# --- bad input


def test_an_impossible_list_is_refused_before_any_work(alone: Path) -> None:
    base = composed(*JOB, "run_dir=run")
    for override, parts in {
        "budget.macs_ratios=[0.5,0.3,0.5]": ["budget.macs_ratios has 0.5 more than once"],
        "budget.params_ratios=[0.3,0.30]": ["budget.params_ratios has 0.3 more than once"],
        "budget.macs_ratios=[0.5,1.5]": ["budget.macs_ratio is 1.5", "(0, 1]"],
        "budget.macs_ratios=[0.5,0]": ["budget.macs_ratio is 0", "(0, 1]"],
        "budget.params_ratios=[.nan]": ["budget.params_ratio is nan", "(0, 1]"],
        "budget.macs_ratios=[0.5,0.01]": ["budget.macs_ratio is 0.01", "smallest allowed network keeps"],
    }.items():
        message = check_error(base, override, cwd=alone)
        assert all(part in message for part in parts), (override, message)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["budget.macs_ratios=[0.5,half]"], ["macs_ratios", "half"]),
        (["budget.macs_ratios=0.5"], ["macs_ratios"]),
        (["budget.macs_ratios=[0.5,0.01]"], ["budget.macs_ratio is 0.01", "smallest allowed network keeps"]),
        (
            ["budget.macs_ratios=[0.5]", "budget.macs_ratio=0.4"],
            [
                "budget.macs_ratio=0.4 and a list of budgets are given",
                "budget.macs_ratio=null",
                "budget.macs_ratios=[]",
            ],
        ),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("budget.") and "=" in value[0] else "",
)
def test_a_bad_list_is_refused_before_any_work(
    tmp_path: Path, overrides: Sequence[str], parts: list[str]
) -> None:
    refused(amc(*JOB, *overrides, "run_dir=run", cwd=workspace(tmp_path)), *parts)
    assert not (tmp_path / "run/dense.safetensors").exists()
    assert not list(tmp_path.glob("run/macs_*"))


@pytest.mark.slow
def test_a_remembered_ratio_is_taken_back(alone: Path, tmp_path: Path) -> None:
    cwd = shutil.copytree(alone, tmp_path / "cwd")
    several = ("run_dir=run", "budget.macs_ratios=[0.7]", "stages=[search]")
    refused(amc(*several, cwd=cwd), "budget.macs_ratio=0.8 and a list", "budget.macs_ratio=null")
    done(*several, "budget.macs_ratio=null", cwd=cwd)
    assert read_json(cwd / "run/macs_0.70/strategy.json")["budget"]["ratio"] == 0.7


def test_a_job_without_a_dense_network_names_the_stage_to_run_first(tmp_path: Path) -> None:
    outcome = amc(*SEVERAL, "stages=[search]", cwd=workspace(tmp_path))
    refused(outcome, "has no dense.safetensors", "stages=[train]", "model.checkpoint=FILE")
