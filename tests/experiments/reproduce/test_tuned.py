"""Tables of fine-tuned networks and of other tools that trained alike."""

import json
import shutil
import sys
from dataclasses import replace

import pytest

from amc.errors import FileError
from experiments.reproduce.__main__ import main
from experiments.reproduce.commands import recipe_of, shown_recipe
from experiments.reproduce.records import merged
from experiments.reproduce.rivals import merged_rivals, place_of, read_rivals
from experiments.reproduce.runs import by_job, read_results, searches
from experiments.reproduce.tables import tables
from tests.experiments.helpers import FAKE, TINY, done, workspace

LONG, SHORT = "finetune.epochs=2", "finetune.epochs=1"
IMAGES = "data.calibration=16 data.image_size=8 data.search_val=32"
"""Settings of the images that are a part of every recipe here."""
TOOL = {
    "rival": "another tool",
    "seed": 1,
    "overrides": ["model=mynet.make", "data.root=/home/me/data", *FAKE, LONG],
    "commit": "0123456789",
    "job": ["mynet.make", "fake", "50% of the macs"],
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
    done(*TINY, *words, stages, "run_dir=runs/long", cwd=cwd)
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
    results, rivals = read_results([runs]), read_rivals([runs], pytest.fail)
    text = tables(by_job(results), "greedy", rivals=rivals)
    rows, found = rows_of(text), {(r.agent, r.recipe): r for r in results}
    assert set(rows) == {("A", "uniform"), ("B", "uniform"), ("B", "greedy"), ("B", "another tool")}
    assert f"- recipe A: `{SHORT}`, with `{IMAGES}`" in text
    assert f"- recipe B: `{LONG}`, with `{IMAGES}`" in text
    uniform, greedy = found["uniform", f"{LONG} {IMAGES}"], found["greedy", f"{LONG} {IMAGES}"]
    cells = rows["B", "uniform"]
    assert float(cells[5]) == pytest.approx(uniform.top1("finetuned"), abs=0.01)
    assert float(cells[8]) == pytest.approx(uniform.top1("finetuned") - greedy.top1("finetuned"), abs=0.01)
    worse = uniform.facts["evaluate"]["finetuned"]["corrupted"]
    assert float(cells[7]) == pytest.approx((worse["noise"] + worse["blur"]) / 2, abs=0.01)
    assert rows["A", "uniform"][8:] == []  # greedy was not trained in this way
    tool = rows["B", "another tool"]
    assert tool[2:8] == ["1", "41.00%", "12.00", "14.00", "10.50", "13.50"]
    assert float(tool[8]) == pytest.approx(14 - greedy.top1("finetuned"), abs=0.01)
    assert (
        f"benchmark rivals model=mynet.make data.root=DIR {' '.join(FAKE)} {LONG} --rivals 'another tool' "
        "--folder DIR --seeds 1`" in text
    )


def test_a_search_that_was_trained_in_two_ways_is_one_row_of_the_searches(runs):
    results = read_results([runs])
    assert len(results) == 3
    assert [(result.agent, result.seed) for result in searches(results)] == [("greedy", 1), ("uniform", 1)]
    text = tables(by_job(results), "greedy")
    assert len([line for line in text.splitlines() if line.startswith("| uniform | 1 |")]) == 1


def trained_with(seed, results):
    return [
        replace(
            result,
            provenance={**result.provenance, "seed": seed},
            facts={name: own for name, own in result.facts.items() if name != "search"},
            episodes=(),
        )
        for result in results
    ]


def test_widths_that_several_seeds_have_trained_are_one_search_and_a_row_of_their_own(runs):
    searched = [result for result in read_results([runs]) if result.recipe.startswith(LONG)]
    other = [
        replace(result, strategy=replace(result.strategy, seed=3)) for result in trained_with(3, searched)
    ]
    results = merged([*searched, *other], trained_with(5, searched), pytest.fail)
    text = tables(by_job(results), "greedy")
    assert len([line for line in text.splitlines() if line.startswith("| uniform | 1, 3 |")]) == 1
    rows = rows_of(text)
    assert rows["A", "uniform"][2] == "1, 3"
    carried = rows["A", "uniform, widths of seed 1"]
    assert carried[2] == "1, 5"
    assert carried[8].startswith("-6.00 [")
    assert rows["A", "uniform"][8].startswith("-6.00")
    one = [result for result in searched if result.agent == "greedy"]
    results = merged(searched, trained_with(5, one), pytest.fail)
    assert rows_of(tables(by_job(results), "greedy"))["A", "uniform"][8] == "-6.00"
    alone = rows_of(tables(by_job(merged(searched, trained_with(5, searched), pytest.fail)), "greedy"))
    assert [name for _, name in alone] == ["greedy, widths of seed 1", "uniform, widths of seed 1"]


def test_rows_of_other_tools_are_kept_without_paths_and_drawn_again(runs, tmp_path, monkeypatch, capsys):
    copy = shutil.copytree(runs, tmp_path / "runs")
    page, line = tmp_path / "R.md", copy / "tools/rows.jsonl"
    alone = {**TOOL, "job": ["mynet", "own", "30% of the macs"]}
    absent = {"rival": "a tool that is missing", "seed": 1, "overrides": [], "not_run": "No module"}
    first = {name: TOOL[name] for name in ("rival", "seed", "overrides")} | {"not_run": "not yet installed"}
    line.write_text("".join(json.dumps(each) + "\n" for each in (first, TOOL, alone, absent)))
    monkeypatch.setattr("experiments.reproduce.__main__.job_svg", lambda *_: "")
    monkeypatch.setattr(sys, "argv", ["reproduce", str(copy), "--against", "greedy", "--out", str(page)])
    main()
    text = page.read_text()
    assert "## mynet, own, 30% of the macs" in text
    assert "missing" not in text
    told = f"reproduce: {line}: a tool that is missing, seed 1, did not run and has no row: No module\n"
    assert capsys.readouterr().err == told
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
        read_rivals([tmp_path], pytest.fail)


def test_rows_of_other_tools_need_no_runs_of_ours(tmp_path, monkeypatch, capsys):
    (tmp_path / "rows.jsonl").write_text(json.dumps(TOOL) + "\n")
    monkeypatch.setattr(sys, "argv", ["reproduce", str(tmp_path)])
    main()
    text = capsys.readouterr().out
    assert "## mynet.make, fake, 50% of the macs" in text
    assert "| A | another tool | 1 | 41.00% |" in text


def test_a_new_row_replaces_that_of_the_same_tool_seed_and_recipe(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (tmp_path / "one/rows.jsonl").write_text(json.dumps(TOOL) + "\n")
    better = {**TOOL, "finetuned_top1": 90.0}
    other = {**TOOL, "overrides": [SHORT]}
    (tmp_path / "two/rows.jsonl").write_text(json.dumps(better) + "\n" + json.dumps(other) + "\n")
    found = merged_rivals(
        read_rivals([tmp_path / "one"], pytest.fail), read_rivals([tmp_path / "two"], pytest.fail)
    )
    assert [row.network.after for row in found] == [14.0, 90.0]
    assert [row.network.recipe for row in found] == [SHORT, f"{LONG} {IMAGES}"]


def test_a_row_stands_in_the_job_whose_own_rows_have_its_recipe_and_dense_network(runs):
    """One of today's recipe may stand in any job of the same network, data and budget, not in the first."""
    first, *_ = (r for r in read_results([runs]) if r.recipe.startswith(SHORT))
    other = next(r for r in read_results([runs]) if r.agent == "uniform" and r.recipe.startswith(LONG))
    other = replace(other, job=(*other.job[:3], "judged in another way"))
    dense = other.top1("dense")

    def place(overrides=TOOL["overrides"], dense=dense):
        (runs / "place.tmp").mkdir(exist_ok=True)
        line = json.dumps({**TOOL, "overrides": overrides, "dense_top1": dense})
        (runs / "place.tmp/rows.jsonl").write_text(line + "\n")
        (row,) = read_rivals([runs / "place.tmp"], pytest.fail)
        shutil.rmtree(runs / "place.tmp")
        return place_of(row, by_job([first, other]))

    assert place() == other.job
    assert place([*TOOL["overrides"], SHORT]) == first.job
    assert place([*TOOL["overrides"], "finetune.epochs=9"]) == first.job  # nobody's recipe
    assert place(dense=dense + 5) == first.job  # the recipe's job is of another dense network
    assert place(dense=None) == other.job
    assert place_of(read_rivals([runs / "tools"], pytest.fail)[0], {}) is None


def test_fine_tuned_rows_without_a_common_seed_are_compared_as_groups_and_say_so(runs, tmp_path):
    copy = shutil.copytree(runs, tmp_path / "runs")
    line = copy / "tools/rows.jsonl"
    more = [{**TOOL, "seed": seed} for seed in (1, 2)]
    line.write_text("".join(json.dumps(row) + "\n" for row in more))
    rows = rows_of(tables(by_job(read_results([copy])), "greedy", rivals=read_rivals([copy], pytest.fail)))
    assert rows["B", "another tool"][8].endswith("(1 seed)")
    line.write_text(json.dumps({**TOOL, "seed": 5}) + "\n")
    rows = rows_of(tables(by_job(read_results([copy])), "greedy", rivals=read_rivals([copy], pytest.fail)))
    assert rows["B", "another tool"][8].endswith("(unpaired)")


def test_corrupted_images_are_averaged_over_the_kinds_that_all_rows_have(runs, tmp_path):
    copy = shutil.copytree(runs, tmp_path / "runs")
    line = copy / "tools/rows.jsonl"
    kinds = {"pruned": {"noise": 10.0, "fog": 90.0}, "finetuned": {"noise": 12.0, "fog": 90.0}}
    line.write_text(json.dumps({**TOOL, "corrupted": kinds}) + "\n")
    text = tables(by_job(read_results([copy])), "greedy", rivals=read_rivals([copy], pytest.fail))
    assert "the mean over noise." in text
    rows = rows_of(text)
    assert rows["B", "another tool"][6:8] == ["10.00", "12.00"]
    dense = read_results([copy])[0].facts["evaluate"]["dense"]["corrupted"]
    assert f"The dense network has {dense['noise']:.2f}% on them." in text
    (uniform,) = (r for r in read_results([copy]) if r.agent == "uniform" and r.recipe.startswith(LONG))
    noise = uniform.facts["evaluate"]["finetuned"]["corrupted"]["noise"]
    assert float(rows["B", "uniform"][7]) == pytest.approx(noise, abs=0.01)
    kinds = {"pruned": {"fog": 90.0}, "finetuned": {"fog": 90.0}}
    line.write_text(json.dumps({**TOOL, "corrupted": kinds}) + "\n")
    text = tables(by_job(read_results([copy])), "greedy", rivals=read_rivals([copy], pytest.fail))
    assert "blank, as the rows share no kind" in text
    assert rows_of(text)["B", "another tool"][6:8] == ["", ""]
    assert "The dense network has" not in text


def test_a_run_that_was_not_fine_tuned_takes_no_record_of_one_that_was(runs):
    """Fine-tuned with the experiment's own settings it has no words that decide its recipe."""
    tuned = next(r for r in read_results([runs]) if r.agent == "greedy")
    own = {**tuned.provenance, "command": "amc agent=greedy stages=[search,prune,finetune,evaluate]"}
    tuned = replace(tuned, provenance=own)
    assert tuned.recipe == ""
    judged = {name: facts for name, facts in tuned.facts["evaluate"].items() if name != "finetuned"}
    plain = replace(tuned, facts={**tuned.facts, "evaluate": judged})
    assert merged([tuned], [plain], pytest.fail) == [plain, tuned]
    assert merged([plain], [tuned], pytest.fail) == [plain, tuned]


def test_a_recipe_is_what_decides_the_result():
    words = (
        "amc finetune=cifar10 agent=ddpg finetune.compile=true finetune.lr=1 finetune.lr=0.1 choose.epochs=3"
    )
    assert recipe_of(f"{words} stages=[prune]") == "choose.epochs=3 finetune.lr=0.1 finetune=cifar10"
    assert recipe_of("amc stages=[schedule,finetune]") == "stage schedule"
    assert recipe_of("amc finetune.teacher=/home/me/t.onnx") == "finetune.teacher=t.onnx"
    assert recipe_of("amc schedule.rewind=/home/me/early2.pth") == "schedule.rewind=early2.pth"
    exact = "finetune.precision=bf16 finetune.sync_norms=false"
    assert recipe_of(f"amc {exact} finetune.processes=2") == exact


def test_a_recipe_has_the_experiment_and_the_images_and_is_readable():
    images = "data.batch_size=64 data.calibration=9 data.image_size=8 data.mirror=false data.search_val=5"
    recipe = recipe_of(f"amc {images} data.root=/d experiment=resnet20_cifar10 finetune.epochs=3 seed=2")
    assert recipe == f"finetune.epochs=3 experiment=resnet20_cifar10 {images}"
    assert shown_recipe(recipe) == f"`finetune.epochs=3`, with `experiment=resnet20_cifar10 {images}`"
    assert shown_recipe("experiment=x") == "the experiment's own settings, with `experiment=x`"
    assert shown_recipe("") == "the experiment's own settings"
