"""Tables of fine-tuned networks and of other tools that trained alike."""

import json
import shutil
import sys

import pytest

from amc.errors import FileError
from experiments.reproduce.__main__ import main
from experiments.reproduce.runs import by_job, read_results, recipe_of, searches
from experiments.reproduce.tables import tables
from experiments.reproduce.tuned import merged_rivals, read_rivals
from tests.experiments.helpers import SMALL, done, workspace

LONG, SHORT = "finetune.epochs=2", "finetune.epochs=1"
TOOL = {
    "rival": "another tool",
    "seed": 1,
    "overrides": ["model=resnet20", "data.root=/home/me/data", LONG],
    "commit": "0123456789",
    "job": ["resnet20", "fake", "50% of the macs"],
    "macs_ratio": 0.41,
    "pruned_top1": 12.0,
    "finetuned_top1": 14.0,
    "corrupted": {"pruned": {"noise": 10.0, "blur": 11.0}, "finetuned": {"noise": 12.0, "blur": 15.0}},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run, and two copies with another recipe and another agent, whose accuracies differ."""
    cwd = workspace(tmp_path_factory.mktemp("tuned"))
    stages = "stages=[train,search,prune,finetune,evaluate]"
    words = ("agent=uniform", "seed=1", LONG, "evaluate.corruptions=[noise,blur]")
    done(*SMALL, *words, stages, "run_dir=runs/long", cwd=cwd)
    copied(cwd / "runs", "short", "provenance.json", (LONG, SHORT))
    copied(cwd / "runs", "greedy", "strategy.json", ('"uniform"', '"greedy"'))
    (cwd / "runs/tools").mkdir()
    (cwd / "runs/tools/rows.jsonl").write_text(json.dumps(TOOL) + "\n")
    return cwd / "runs"


def copied(runs, name, file, change):
    copy = shutil.copytree(runs / "long", runs / name)
    text = (copy / file).read_text()
    assert change[0] in text
    (copy / file).write_text(text.replace(*change))
    record = copy / "stages/evaluate.json"
    facts = json.loads(record.read_text())
    facts["finetuned"]["top1"] += len(name)
    record.write_text(json.dumps(facts))


def rows_of(text):
    """Return the cells of the rows whose first is the letter of a recipe."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {(cells[0], cells[1]): cells for cells in lines if len(cells[0]) == 1}


def test_networks_of_one_recipe_stand_together(runs):
    results, rivals = read_results([runs]), read_rivals([runs])
    text = tables(by_job(results), "greedy", rivals=rivals)
    rows, found = rows_of(text), {(r.agent, r.recipe): r for r in results}
    assert set(rows) == {("A", "uniform"), ("B", "uniform"), ("B", "greedy"), ("B", "another tool")}
    assert f"- recipe A: `{SHORT}`" in text
    assert f"- recipe B: `{LONG}`" in text
    uniform, greedy = found["uniform", LONG], found["greedy", LONG]
    cells = rows["B", "uniform"]
    assert float(cells[5]) == pytest.approx(uniform.top1("finetuned"), abs=0.01)
    assert float(cells[8]) == pytest.approx(uniform.top1("finetuned") - greedy.top1("finetuned"), abs=0.01)
    worse = uniform.facts["evaluate"]["finetuned"]["corrupted"]
    assert float(cells[7]) == pytest.approx((worse["noise"] + worse["blur"]) / 2, abs=0.01)
    assert rows["A", "uniform"][8:] == []  # greedy was not trained in this way
    tool = rows["B", "another tool"]
    assert tool[2:8] == ["1", "41.00%", "12.00", "14.00", "10.50", "13.50"]
    assert float(tool[8]) == pytest.approx(14 - greedy.top1("finetuned"), abs=0.01)
    assert "benchmark rivals model=resnet20 data.root=DIR finetune.epochs=2 --folder DIR --seeds 1`" in text


def test_a_search_that_was_trained_in_two_ways_is_one_row_of_the_searches(runs):
    results = read_results([runs])
    assert len(results) == 3
    assert [(result.agent, result.seed) for result in searches(results)] == [("greedy", 1), ("uniform", 1)]
    text = tables(by_job(results), "greedy")
    assert len([line for line in text.splitlines() if line.startswith("| uniform | 1 |")]) == 1


def test_rows_of_other_tools_are_kept_without_paths_and_drawn_again(runs, tmp_path, monkeypatch):
    copy = shutil.copytree(runs, tmp_path / "runs")
    page, line = tmp_path / "R.md", copy / "tools/rows.jsonl"
    alone = {**TOOL, "job": ["mynet", "own", "30% of the macs"]}
    absent = {"rival": "a tool that is missing", "seed": 1, "overrides": [], "not_run": "No module"}
    line.write_text("".join(json.dumps(each) + "\n" for each in (TOOL, alone, absent)))
    monkeypatch.setattr("experiments.reproduce.__main__.job_svg", lambda *_: "")
    monkeypatch.setattr(sys, "argv", ["reproduce", str(copy), "--against", "greedy", "--out", str(page)])
    main()
    text = page.read_text()
    assert "## mynet, own, 30% of the macs" in text
    assert "missing" not in text
    kept = (tmp_path / "records/rivals/rows.jsonl").read_text()
    assert kept.count("\n") == 2
    assert "/home" not in kept
    monkeypatch.setattr(sys, "argv", ["reproduce", "--against", "greedy", "--out", str(page)])
    main()
    assert page.read_text() == text


@pytest.mark.parametrize(
    "change", [{"job": None}, {"corrupted": {"pruned": {"noise": "x"}, "finetuned": {}}}]
)
def test_a_damaged_row_is_one_line(tmp_path, change):
    row = {name: value for name, value in {**TOOL, **change}.items() if value is not None}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(FileError, match=r"rows.jsonl line 1 is no row of another tool"):
        read_rivals([tmp_path])


def test_rows_of_other_tools_need_no_runs_of_ours(tmp_path, monkeypatch, capsys):
    (tmp_path / "rows.jsonl").write_text(json.dumps(TOOL) + "\n")
    monkeypatch.setattr(sys, "argv", ["reproduce", str(tmp_path)])
    main()
    text = capsys.readouterr().out
    assert "## resnet20, fake, 50% of the macs" in text
    assert "| A | another tool | 1 | 41.00% |" in text


def test_a_new_row_replaces_that_of_the_same_tool_seed_and_recipe(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (tmp_path / "one/rows.jsonl").write_text(json.dumps(TOOL) + "\n")
    better = {**TOOL, "finetuned_top1": 90.0}
    other = {**TOOL, "overrides": [SHORT]}
    (tmp_path / "two/rows.jsonl").write_text(json.dumps(better) + "\n" + json.dumps(other) + "\n")
    found = merged_rivals(read_rivals([tmp_path / "one"]), read_rivals([tmp_path / "two"]))
    assert [row.network.after for row in found] == [14.0, 90.0]
    assert [row.network.recipe for row in found] == [SHORT, LONG]


def test_a_recipe_is_what_decides_the_result():
    words = (
        "amc finetune=cifar10 agent=ddpg finetune.compile=true finetune.lr=1 finetune.lr=0.1 choose.epochs=3"
    )
    assert recipe_of(f"{words} stages=[prune]") == "choose.epochs=3 finetune.lr=0.1 finetune=cifar10"
    assert recipe_of("amc stages=[schedule,finetune]") == "stage schedule"
    assert recipe_of("amc finetune.teacher=/home/me/t.onnx") == "finetune.teacher=FILE.onnx"
