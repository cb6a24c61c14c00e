"""Tables from run folders that real runs have left."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import conf
from amc.errors import AmcError
from amc.strategy import Strategy
from experiments.reproduce import tables as reproduced
from experiments.reproduce.__main__ import main, write_strategies
from experiments.reproduce.commands import command_of, experiment_of, setting_of, short_commit, shown_command
from experiments.reproduce.figures import WINDOW, best_so_far, carried_on, long_means, smoothed
from experiments.reproduce.front_page import JOB, RECORDS, front_page_svg
from experiments.reproduce.origins import command_lines, not_run
from experiments.reproduce.paper import paper_rows
from experiments.reproduce.records import merged, read_records, write_records
from experiments.reproduce.runs import by_job, read_results, searches
from experiments.reproduce.tables import tables
from experiments.run.provenance import former_commands, stage_commits
from tests.experiments.helpers import TINY, done, read_lines, workspace

SETTINGS = (
    "`agent.warmup_episodes=2`, `data.calibration=16`, `data.image_size=8`, `data.num_classes=4`, "
    "`data.test=32`, `data.train=64`, `train.epochs=1`"
)
"""Settings of ``TINY`` that change the search and that a title does not tell elsewhere."""
SLUG = "mynet.make_fake_macs50_likeness_val32_with21abef34"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    cwd = workspace(tmp_path_factory.mktemp("reproduce"))
    stages = "stages=[train,search,prune,evaluate]"
    for agent, seed in (("uniform", 0), ("random", 0), ("random", 1)):
        done(*TINY, f"agent={agent}", f"seed={seed}", stages, f"run_dir=runs/{agent}_{seed}", cwd=cwd)
    return cwd / "runs"


@pytest.fixture
def quick_figures(monkeypatch):
    """Writes the values that figures show instead of drawing them, which takes a second for each."""

    def values(results, paper):
        scores = [[(e["return"], e["macs_ratio"], e["phase"]) for e in r.episodes] for r in results]
        networks = [(r.agent, r.strategy.groups, r.top1("dense"), r.top1("pruned")) for r in results]
        return repr((scores, networks, paper))

    monkeypatch.setattr("experiments.reproduce.__main__.job_svg", values)


def test_each_agent_has_a_row_over_its_seeds_with_the_difference_to_another(runs):
    results = read_results([runs])
    text = tables(by_job(results), "random")
    rows = {
        line.split(" | ")[0][2:]: line.split(" | ") for line in text.splitlines() if line.startswith("| ")
    }
    assert set(rows) == {"agent", "random", "uniform"}
    assert rows["random"][1] == "0, 1"
    by_agent = {(result.agent, result.seed): result.top1("pruned") for result in results}
    mean = (by_agent["random", 0] + by_agent["random", 1]) / 2
    assert float(rows["random"][4].split()[0]) == pytest.approx(mean, abs=0.01)
    divergence = [result.divergence("pruned") for result in results if result.agent == "random"]
    assert float(rows["random"][8].split()[0]) == pytest.approx(sum(divergence) / 2, abs=0.001)
    less, pairs = rows["uniform"][9].rstrip(" |").split(" ", 1)
    assert float(less) == pytest.approx(by_agent["uniform", 0] - by_agent["random", 0], abs=0.01)
    assert pairs == "(1 seed)"
    assert "50% of the macs" in text


def test_agents_without_a_common_seed_are_compared_as_groups_and_say_so(runs):
    others = [
        replace(result, strategy=replace(result.strategy, seed=7)) if result.agent == "uniform" else result
        for result in read_results([runs])
    ]
    (row,) = [line for line in tables(by_job(others), "random").splitlines() if line.startswith("| uniform")]
    assert row.rstrip(" |").endswith("(unpaired)")


def test_searches_of_several_lengths_are_rows_of_their_own(runs):
    results = read_results([runs])
    facts = {"agent": "random", "value": 0.0, "episodes": 50}
    longer = [
        replace(result, strategy=replace(result.strategy, provenance=facts))
        for result in results
        if result.agent == "random"
    ]
    together = merged(results, longer, pytest.fail)
    assert len(together) == len(results) + 2
    text = tables(by_job(together), "random")
    rows = [line.split(" | ")[:2] for line in text.splitlines() if line.startswith(("| random", "| uni"))]
    assert sorted(rows) == [
        ["| random, 4 episodes", "0, 1"],
        ["| random, 50 episodes", "0, 1"],
        ["| uniform", "0"],
    ]
    assert "less random, 50 episodes |" in text
    assert "- random, 4 episodes, seeds 0, 1: `amc " in text
    assert "less random, 4 episodes |" in tables(by_job(together), "random, 4 episodes")
    assert merged(together, longer, pytest.fail) == together


def test_searches_that_judge_differently_have_tables_of_their_own(runs, tmp_path):
    copy = shutil.copytree(runs, tmp_path / "runs")
    config = copy / "random_1/.hydra/config.yaml"
    text = config.read_text()
    assert "sequential_images: 0" in text
    config.write_text(text.replace("sequential_images: 0", "sequential_images: 16"))
    heads = [
        line for line in tables(by_job(read_results([copy])), "random").splitlines() if line.startswith("## ")
    ]
    assert sorted(head.partition("% of the macs, ")[2] for head in heads) == [
        f"judged by likeness on 32 images after a refit on 16, with {SETTINGS}",
        f"judged by likeness on 32 images, with {SETTINGS}",
    ]


def test_a_machine_is_not_named_in_a_command():
    command = "amc model.checkpoint=/home/me/net.th data.root=/data/x seed=1 stages=[a,b] run_dir=/tmp/r"
    assert shown_command(command) == "amc model.checkpoint=FILE.th data.root=DIR seed=1 stages=[a,b]"


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("amc data.roots=[/home/me/a,/home/me/b]", "amc data.roots=[FILE,FILE]"),
        ("amc finetune.teacher=[/home/me/a.npy,plain]", "amc finetune.teacher=[a.npy,plain]"),
        ("amc data.kwargs={root:/home/me,size:3} seed=1", "amc data.kwargs={root:FILE,size:3} seed=1"),
        ("amc data.root='/home/me/my data/x' seed=1", "amc data.root=DIR seed=1"),
        ("amc model.checkpoint='/home/me/my net.th'", "amc model.checkpoint=FILE.th"),
        ("amc 'data.root=/home/me/my data/x' seed=1", "amc data.root=DIR seed=1"),
        ("amc data.root=/home/me/my data/x seed=1", "amc data.root=DIR seed=1"),
        ("amc data.root=my data/cifar10 seed=1", "amc data.root=DIR seed=1"),
        ("amc name='my study' seed=1", "amc name='my study' seed=1"),
        ("amc name=it's data.root=/home/me", "amc name=it's data.root=DIR"),
        ("amc 'name=my study' seed=1", "amc 'name=my study' seed=1"),
        ("amc 'reward=it'\"'\"'s mine' 'seed=1'", "amc 'reward=it'\"'\"'s mine' seed=1"),
    ],
)
def test_no_path_is_left_in_lists_or_after_spaces(command, shown):
    assert shown_command(command) == shown


def test_settings_with_spaces_are_told_apart():
    command = command_of(["amc", "name=my 'own' study", "data.root=/a b", "seed=1"])
    assert [setting_of(command, key) for key in ("name", "data.root", "seed")] == [
        "my 'own' study", "/a b", "1",
    ]  # fmt: skip
    assert shown_command(shown_command(command)) == shown_command(command)


def test_commands_of_the_records_are_shown_as_they_are():
    results = read_records(RECORDS)
    assert len(results) > 90
    commands = [result.provenance["command"] for result in results]
    assert [shown_command(command) for command in commands] == commands


def test_settings_that_change_the_search_are_told_in_the_title_and_in_file_names(runs, tmp_path):
    copy = shutil.copytree(runs / "random_1", tmp_path / "random_1")
    path = copy / "provenance.json"
    facts = json.loads(path.read_text())

    def read(told):
        words = "finetune.epochs=3 budget.macs_ratio=0.5 data.root=/d agent=random seed=1 workers.count=2"
        command = f"amc {told} {words} profile.int8=true ++evaluate.corruptions=[blur]"
        path.write_text(json.dumps({**facts, "command": command}))
        (result,) = read_results([copy])
        return result.job[-1].removeprefix("judged by likeness on 32 images"), result.slug

    slug = "mynet.make_fake_macs50_likeness_val32"
    assert read("") == ("", slug)
    coupled = read("compressor.prune_coupled=true")
    assert coupled == (", with `compressor.prune_coupled=true`", f"{slug}_compressor.prune_coupled_true")
    config = copy / ".hydra/config.yaml"
    serial = config.read_text()
    config.write_text(serial.replace("kind: serial", "kind: process"))
    assert read("workers=process") == (", with `workers.count=2`", f"{slug}_workers.count_2")
    config.write_text(serial)
    words, _ = read("data.search_views=4 compressor.prune_coupled=true")
    assert words == ", with `compressor.prune_coupled=true`, `data.search_views=4`"
    told = (
        "data.batch_size=9",
        "compressor.batch_size=9",
        "compressor.exclude=[a,bc]",
        "compressor.exclude=[ab,c]",
    )
    assert len({read(each)[1] for each in told}) == len(told)


def test_an_agent_is_named_as_its_command_names_it(runs):
    (result,) = (own for own in read_results([runs]) if own.agent == "uniform")

    def named(recorded, command):
        strategy = replace(result.strategy, provenance={"agent": recorded})
        return replace(result, strategy=strategy, provenance={"command": command}).agent

    assert named("ddpg", "amc agent=ddpg_paper seed=0") == "ddpg_paper"
    assert named("ddpg", "amc agent=ddpg") == named("ddpg", "amc seed=0") == "ddpg"
    assert named("greedy", "amc agent=ddpg_paper strategy=FILE.json") == "greedy"
    assert named("mine.search", "amc agent=random agent.name=mine.search") == "mine.search"
    assert named("mine:search", "amc agent=random agent.name=mine:search") == "mine.search"
    assert named("ddpg", "amc agent=../ddpg") == "ddpg"


def test_a_published_strategy_of_a_preset_keeps_its_name(runs, tmp_path):
    (result,) = (own for own in read_results([runs]) if own.agent == "uniform")
    strategy = replace(result.strategy, provenance={**result.strategy.provenance, "agent": "ddpg"})
    paper = replace(result, strategy=strategy, provenance={"command": "amc agent=ddpg_paper"})
    write_strategies({paper.job: [paper]}, tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.name.endswith("_ddpg_paper.json")
    again = {"command": "amc strategy=FILE.json stages=[prune,evaluate]"}
    assert replace(result, strategy=Strategy.load(path), provenance=again).agent == "ddpg_paper"
    assert replace(paper, provenance=again).agent == "ddpg"  # its file told no preset


def test_a_strategy_that_rows_carry_out_stays_the_published_one(runs, tmp_path):
    found = [own for own in read_results([runs]) if own.agent == "random"]
    worse, better = sorted(found, key=lambda own: own.value)
    assert worse.strategy != better.strategy
    carried = replace(worse, provenance={**worse.provenance, "seed": 7})
    for results, expected in (([worse, better], better), ([worse, better, carried], worse)):
        write_strategies({worse.job: results}, tmp_path)
        (path,) = tmp_path.iterdir()
        assert Strategy.load(path).widths == expected.strategy.widths


def test_a_job_without_the_agent_to_compare_with_has_its_preset(runs):
    def renamed(result):
        name = {"random": "random_mine"}.get(result.agent, result.agent)
        return replace(result, strategy=replace(result.strategy, provenance={"agent": name}))

    text = tables(by_job(map(renamed, read_results([runs]))), "random")
    assert "| less random_mine |" in text
    assert "(1 seed)" in text


def test_the_seed_is_that_of_the_run_and_not_of_its_strategy(runs, tmp_path):
    copy = shutil.copytree(runs / "random_1", tmp_path / "random_1")
    path = copy / "provenance.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seed": 4}))
    (result,) = read_results([copy])
    assert (result.widths_seed, result.seed) == (1, 4)
    published = replace(result.strategy, provenance={"agent": "published"})
    assert replace(result, strategy=published).widths_seed == 4


def test_the_time_of_a_search_that_was_taken_up_again_is_blank(runs, tmp_path):
    def wall(places):
        lines = tables(by_job(read_results([places])), "uniform").splitlines()
        return next(line.split(" | ")[7] for line in lines if line.startswith("| random"))

    copy = shutil.copytree(runs, tmp_path / "runs")
    path = copy / "random_1/stages/search.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "seconds": 58.0, "evaluation_cpu_seconds": 50.0}))
    assert wall(copy) != ""
    path.write_text(json.dumps({**facts, "seconds": 58.0, "evaluation_cpu_seconds": 15500.0}))
    assert wall(copy) == ""
    place = copy / "random_1/provenance.json"
    about = json.loads(place.read_text())
    place.write_text(
        json.dumps({**about, "command": f"{about['command']} workers=process workers.count=999"})
    )
    assert wall(copy) != ""
    assert "| evaluations, CPU s |" in tables(by_job(read_results([copy])), "uniform")


def test_commands_that_differ_have_lines_with_their_seeds():
    facts = {"stage_commits": {"search": "1" * 40 + "+dirty"}}
    one, two, three = (
        {**facts, "seed": seed, "command": f"amc seed={seed} agent=ddpg{more}"}
        for seed, more in ((0, " finetune.epochs=1"), (1, ""), (2, ""))
    )
    assert command_lines("ddpg", [one, two, three]) == [
        "- ddpg, seed 0: `amc seed=0 agent=ddpg finetune.epochs=1`, commit 1111111+dirty",
        "- ddpg, seeds 1, 2: `amc seed=1 agent=ddpg`, commit 1111111+dirty",
    ]


def test_a_run_whose_pruned_network_was_not_judged_is_left_out_by_name(runs, tmp_path, monkeypatch, capsys):
    copy = shutil.copytree(runs, tmp_path / "runs")
    path = copy / "random_1/stages/evaluate.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({name: own for name, own in facts.items() if name != "pruned"}))
    monkeypatch.setattr(sys, "argv", ["reproduce", str(copy), "--against", "random"])
    main()
    shown = capsys.readouterr()
    assert "| random | 0 |" in shown.out
    assert shown.err.count("\n") == 1
    assert f"{copy / 'random_1'} is left out" in shown.err


def test_a_strategy_that_was_evaluated_again_does_not_hide_its_search(runs):
    (search,) = (own for own in read_results([runs]) if (own.agent, own.seed) == ("random", 1))
    found = {name: own for name, own in search.facts.items() if name != "search"}
    again = replace(search, episodes=[], facts=found)
    assert searches([again, search]) == searches([search, again]) == [search]
    assert searches([again]) == [again]
    assert tables({search.job: [again, search]}, "random") == tables({search.job: [search]}, "random")


@pytest.mark.parametrize("lengths", [[200, 0], [200, 10], [10, 200, 30], [0], [10], [199, 10]])
def test_returns_of_long_searches_are_averaged_beside_short_ones(runs, lengths):
    result = read_results([runs])[0]
    found = long_means([replace(result, episodes=[{"return": 1.0}] * count) for count in lengths])
    assert len(found) == (min(c for c in lengths if c >= WINDOW) - WINDOW + 1 if max(lengths) >= 200 else 0)
    assert found.tolist() == pytest.approx([1.0] * len(found))


def test_the_best_of_a_search_that_has_ended_stays():
    assert carried_on([[1.0, 3.0], [2.0, 2.0, 4.0]]).tolist() == [[1, 2], [3, 2], [3, 4]]


def test_the_picture_counts_each_search_once_and_its_evaluations():
    results = [result for result in read_records(RECORDS) if result.slug == JOB]
    words = "finetune.epochs=7"
    again = [
        replace(r, provenance={**r.provenance, "command": f"{r.provenance['command']} {words}"})
        for r in results
        if r.agent == "ddpg" and r.seed == 0
    ]
    drawn = [
        re.findall(r"<text [^>]*>(.*?)</text>", front_page_svg(r)) for r in (results, [*results, *again])
    ]
    assert drawn[0] == drawn[1]
    assert any(label.startswith("ours: DDPG, 38 evaluations: 87.60") for label in drawn[0])
    assert "fine-tuned: one epoch, one seed" in drawn[0]


def test_a_search_on_the_test_images_says_so(runs, tmp_path):
    copy = shutil.copytree(runs / "random_1", tmp_path / "copy")
    config = copy / ".hydra/config.yaml"
    places = "data:\n  search_val_dir: photos\n  test: photos\n"
    config.write_text(config.read_text().replace("data:\n", places, 1).replace("  test: 32\n", ""))
    (result,) = read_results([copy])
    settings = SETTINGS.replace("`data.test=32`, ", "")  # told in words
    assert result.job[-1] == (
        f"judged by likeness on 32 images, which are the test images too, with {settings}"
    )
    assert "_likeness_val32_ontest_with" in result.slug


def test_runs_of_earlier_releases_have_their_own_table(runs, tmp_path):
    copy = shutil.copytree(runs / "random_1", tmp_path / "random_1")
    config = copy / ".hydra/config.yaml"
    older = config.read_text().replace("activation_rounds: 3", "activation_rounds: 0")
    config.write_text(older.replace("  measured_images: 64\n", "").replace("  fit: scale\n", ""))
    (result,) = read_results([copy])
    settings = "`prune.activation_rounds=0`, `compressor.measured_images=0`, `budget.fit=cut`"
    assert result.job[-1] == f"judged by likeness on 32 images, with {settings}, {SETTINGS}"
    assert result.slug.endswith("_rounds0_measured0_cut_with21abef34")


def test_the_command_names_stages_that_were_added_later(runs, tmp_path):
    copy = shutil.copytree(runs / "uniform_0", tmp_path / "copy")
    path = copy / "provenance.json"
    later = json.loads(path.read_text())
    path.write_text(json.dumps({**later, "command": "amc agent=uniform stages=[evaluate] seed=0"}))
    (result,) = read_results([copy])
    assert result.provenance["command"] == "amc agent=uniform seed=0 stages=[train,search,prune,evaluate]"


def test_commits_are_shown_by_stage_where_they_differ(runs, tmp_path):
    def origin(places):
        return next(
            line
            for line in tables(by_job(read_results([places])), "random").splitlines()
            if "- uniform" in line
        )

    copy = shutil.copytree(runs, tmp_path / "runs")
    path = copy / "uniform_0/provenance.json"
    facts = json.loads(path.read_text())
    assert set(facts["stage_commits"]) == {"train", "search", "prune", "evaluate"}
    assert origin(copy).endswith(f"commit {short_commit(facts['commit'])}")
    one, other = "1" * 40, "2" * 40
    facts["stage_commits"] = {"train": other, "search": other, "prune": one, "evaluate": one}
    path.write_text(json.dumps(facts))
    assert origin(copy).endswith("commit 2222222 (train, search); 1111111 (prune, evaluate)")


def test_stages_without_commits_of_their_own_have_that_of_the_run(runs, tmp_path):
    copy = shutil.copytree(runs / "uniform_0", tmp_path / "copy")
    path = copy / "provenance.json"
    facts = json.loads(path.read_text())
    del facts["stage_commits"]
    path.write_text(json.dumps({**facts, "commit": "old"}))
    found = stage_commits(copy, "prune", "new")
    assert found == {"train": "old", "search": "old", "prune": "new", "evaluate": "old"}
    assert stage_commits(tmp_path, "train", None) == {"train": None}


def test_a_later_command_leaves_the_recipe_of_the_fine_tuned_network(runs, tmp_path):
    copy = shutil.copytree(runs / "uniform_0", tmp_path / "copy")
    path, judged = copy / "provenance.json", copy / "stages/evaluate.json"
    facts, found = json.loads(path.read_text()), json.loads(judged.read_text())
    (copy / "stages/finetune.json").write_text("{}")
    judged.write_text(json.dumps({**found, "finetuned": found["pruned"]}))
    assert former_commands(copy, "finetune", "amc") == {}
    assert former_commands(copy, "correlate", "amc") == {"tuned_by": facts["command"]}
    former = "amc data.root=/home/me/data finetune.epochs=30"
    later = {"command": "amc finetune.epochs=1 stages=[correlate]", "tuned_by": former}
    path.write_text(json.dumps({**facts, **later}))
    assert former_commands(copy, "evaluate", "amc") == {"tuned_by": former}
    (result,) = read_results([copy])
    assert result.recipe == "finetune.epochs=30"
    write_records([result], tmp_path / "records")
    (again,) = read_records(tmp_path / "records")
    assert again.recipe == "finetune.epochs=30"
    assert "/home/me" not in again.provenance["tuned_by"]


def test_networks_that_were_cut_in_steps_or_chosen_have_tables_of_their_own(runs, tmp_path):
    plain, other = (shutil.copytree(runs / "uniform_0", tmp_path / name) for name in ("plain", "other"))
    facts = {"steps": [], "candidates": [], "chosen": 0, "images": "search_val", "epochs": 1}
    for stage in ("schedule", "choose"):
        (other / f"stages/{stage}.json").write_text(json.dumps(facts))
    (one,), (two,) = read_results([plain]), read_results([other])
    added = "cut in steps at 75, 60% with 1 epochs between them, the best of 3 after 1 epochs"
    assert one.job[:-1] == two.job[:-1]
    assert added in two.job[-1]
    assert added not in one.job[-1]
    assert "_steps75_60x1_best3x1" in two.slug
    # stage schedule leaves a record of stage prune, which is refused beside it
    assert ["prune" in own.provenance["command"] for own in (one, two)] == [True, False]


def test_a_folder_is_no_page_and_nothing_is_written(runs, tmp_path, monkeypatch, capsys):
    (tmp_path / "study").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["reproduce", str(runs), "--out", "study"])
    with pytest.raises(SystemExit):
        main()
    assert "--out study is a folder; expected a file, such as study/RESULTS.md" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["study"]


def test_a_damaged_run_and_an_empty_folder_are_one_line(runs, tmp_path, capsys, monkeypatch):
    broken = shutil.copytree(runs / "uniform_0", tmp_path / "broken")
    (broken / "provenance.json").write_text(json.dumps({"data": {}}))
    (tmp_path / "empty").mkdir()
    for folder in (broken, tmp_path / "empty"):
        monkeypatch.setattr(sys, "argv", ["reproduce", str(folder)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_the_tables_are_written_to_a_file_next_to_figures_and_strategies(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reproduce", str(runs), "--out", str(tmp_path / "R.md")])
    main()
    told = "reproduce: no run is of 'ddpg', so no differences are shown: give --against random or uniform\n"
    assert capsys.readouterr().err == told
    text = (tmp_path / "R.md").read_text()
    assert text.startswith("# Results")
    (picture,) = (tmp_path / "figures").iterdir()
    assert f"(figures/{picture.name})" in text
    drawn = picture.read_bytes()
    assert b"<svg" in drawn
    assert all(part in drawn for part in (b"random (2)", b"uniform (one evaluation)"))
    names = sorted(path.name for path in (tmp_path / "strategies").iterdir())
    assert names == [f"{SLUG}_random.json", f"{SLUG}_uniform.json"]
    best = max((r for r in read_results([runs]) if r.agent == "random"), key=lambda r: r.value)
    assert Strategy.load(tmp_path / "strategies" / names[0]) == best.strategy
    main()
    assert picture.read_bytes() == drawn  # the same runs, the same bytes


def test_results_are_drawn_again_from_records_alone(runs, tmp_path, monkeypatch, quick_figures):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["reproduce", *map(str, arguments), "--out", str(tmp_path / "R.md")])
        main()
        return {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    call(runs / "uniform_0", runs / "random_0")
    both = call(runs / "random_1")
    assert "| random | 0, 1 |" in both[Path("R.md")].decode()
    assert call() == both
    assert call(runs) == both  # runs that are known already
    (records,) = (tmp_path / "records").iterdir()
    assert str(runs) not in records.read_text()  # no places of one machine
    (tmp_path / "all").mkdir()
    monkeypatch.setattr(sys, "argv", ["reproduce", str(runs), "--out", str(tmp_path / "all/R.md")])
    main()
    assert (tmp_path / "all/R.md").read_bytes() == both[Path("R.md")]


def test_a_run_that_found_another_network_names_the_one_it_replaces(runs):
    one, other = (result for result in read_results([runs]) if result.agent == "random")
    groups = tuple(replace(group, kept=group.kept - 1) for group in one.strategy.groups)
    assert one.strategy.groups != groups
    changed = replace(one, strategy=replace(one.strategy, groups=groups))
    lines = []
    assert merged([one, other], [changed], lines.append) == [changed, other]
    (line,) = lines
    assert f"random seed {one.seed} of {SLUG} has found another network" in line
    assert line.count("agent=random") == 2


def test_one_result_in_two_folders_is_one_sample(runs, tmp_path, monkeypatch, capsys):
    for name in ("one", "two"):
        shutil.copytree(runs / "random_0", tmp_path / name)
    monkeypatch.setattr(sys, "argv", ["reproduce", str(tmp_path), "--against", "random"])
    main()
    assert "| random | 0 |" in capsys.readouterr().out


def test_folders_that_are_missing_or_without_a_run_are_named(runs, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    places = [str(runs / "random_0"), str(tmp_path / "empty")]
    monkeypatch.setattr(sys, "argv", ["reproduce", *places, "--against", "random"])
    main()
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert shown.err.startswith(f"reproduce: {places[1]} has no evaluated run: run stages=[...,evaluate]")
    monkeypatch.setattr(sys, "argv", ["reproduce", *places, str(tmp_path / "tpyo"), "--against", "random"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.startswith(f"reproduce: {tmp_path / 'tpyo'}: there is no such folder")


def test_results_of_two_dense_networks_share_no_table_where_one_was_given(runs):
    (result,) = (own for own in read_results([runs]) if own.agent == "uniform")
    command = f"{result.provenance['command']} model.checkpoint=/home/me/dense.safetensors"
    given = replace(result, provenance={**result.provenance, "command": command}, place="given")
    networks = result.facts["evaluate"]
    better = {**networks, "dense": {**networks["dense"], "top1": result.top1("dense") + 5}}
    other = replace(result, facts={**result.facts, "evaluate": better}, place="other")
    for known, new in ([given], [other]), ([other], [given]), ([], [other, given]):
        with pytest.raises(AmcError, match=r"other has a dense network of .* given one of .* seed 0"):
            merged(known, new, pytest.fail)
    assert merged([given], [result], pytest.fail) == [result]
    assert merged([result], [other], pytest.fail) == [other]  # each has trained its own
    seven = replace(other, provenance={**given.provenance, "seed": 7})
    assert merged([given], [seven], pytest.fail) == [given, seven]


def test_results_of_two_data_sets_of_one_name_share_no_table(runs):
    one, other = (own for own in read_results([runs]) if own.agent == "random")
    networks, model = other.facts["evaluate"], other.strategy.model
    fewer = {**networks, "dense": {**networks["dense"], "images": 30}}
    shapes = {"num_classes": 5}, {"input_shape": [3, 16, 16]}
    apart = [
        (replace(other, facts={**other.facts, "evaluate": fewer}), "has 30 test images, .* 32: expected"),
        *(
            (replace(other, strategy=replace(other.strategy, model={**model, **own})), message)
            for own, message in zip(shapes, ("has 5 classes, .* 4", "has images of 3x16x16"), strict=True)
        ),
    ]
    for result, message in apart:
        with pytest.raises(AmcError, match=message) as error:
            merged([one], [result], pytest.fail)
        assert SLUG in str(error.value)
    assert len(merged([one], [other], pytest.fail)) == 2


def test_a_damaged_record_is_one_line(runs, tmp_path, capsys, monkeypatch, quick_figures):
    arguments = [str(runs), "--against", "random", "--out", str(tmp_path / "R.md")]
    monkeypatch.setattr(sys, "argv", ["reproduce", *arguments])
    main()
    (path,) = (tmp_path / "records").iterdir()
    path.write_text(path.read_text().replace('"evaluate"', '"evaluated"', 1))
    with pytest.raises(SystemExit):
        main()
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{path} line 1 is damaged" in error


@pytest.mark.slow
def test_a_committed_strategy_is_evaluated_again_to_the_same_accuracy(
    runs, tmp_path, monkeypatch, quick_figures
):
    monkeypatch.setattr(sys, "argv", ["reproduce", str(runs), "--out", str(tmp_path / "R.md")])
    main()
    best = max((r for r in read_results([runs]) if r.agent == "random"), key=lambda r: r.value)
    path = tmp_path / f"strategies/{SLUG}_random.json"
    done(
        *TINY, f"seed={best.seed}", f"strategy={path}", "stages=[prune,evaluate]", "run_dir=again",
        f"model.checkpoint={runs / f'random_{best.seed}/dense.safetensors'}", cwd=workspace(tmp_path / "cwd"),
    )  # fmt: skip
    (again,) = read_results([tmp_path / "cwd/again"])
    assert merged([best], [again], pytest.fail) == [best]  # the search is worth keeping
    assert merged([again], [best], pytest.fail) == [best]
    assert again.top1("pruned") == best.top1("pruned")
    assert list(again.episodes) == []
    assert "random" in tables(by_job([again]), "ddpg")


def test_the_papers_rows_are_shown_and_those_from_memory_are_marked(runs, monkeypatch):
    (row,) = paper_rows("resnet56", ("cifar10", 10), "macs", 0.5)
    assert paper_rows("resnet20", ("cifar10", 10), "macs", 0.5) == []
    assert paper_rows("resnet56", ("mine.pictures", 10), "macs", 0.5) == []
    monkeypatch.setattr(reproduced, "paper_rows", lambda *_: [row])
    text = tables(by_job(read_results([runs])), "random")
    assert "from 92.80 on CIFAR-10, fine-tuned: 91.90*" in text
    assert "| 90.20 (M) | 2.60 |" in text
    assert "from memory of the paper" in text


def test_correlations_are_shown_where_they_were_measured(runs, tmp_path):
    copy = shutil.copytree(runs, tmp_path / "runs")
    facts = {"policies": 7, "epochs": 2, "spearman": {"return ~ top1_finetuned": [0.5, -0.1, 0.9]}}
    (copy / "random_1/stages/correlate.json").write_text(json.dumps(facts))
    text = tables(by_job(read_results([copy])), "random")
    assert "over 7 policies that `random` met (seed 1; test images; fine-tuned for 2 epochs" in text
    assert "- return and accuracy after fine-tuning: 0.50 [-0.10, 0.90]" in text


def test_networks_without_accuracy_have_rows_with_dashes_and_a_figure(runs, tmp_path, monkeypatch):
    copy = shutil.copytree(runs, tmp_path / "runs")
    for run in copy.iterdir():
        log, evaluated = run / "search.jsonl", run / "stages/evaluate.json"
        episodes = [{**episode, "top1": None, "loss": None} for episode in read_lines(log)]
        log.write_text("".join(f"{json.dumps(episode)}\n" for episode in episodes))
        networks = json.loads(evaluated.read_text())
        for name in ("dense", "pruned"):
            networks[name]["top1"] = None
        evaluated.write_text(json.dumps(networks))
    monkeypatch.setattr(sys, "argv", ["reproduce", str(copy), "--out", str(tmp_path / "R.md")])
    main()
    text = (tmp_path / "R.md").read_text()
    assert "Dense network: it has no accuracy." in text
    for row in (line.split(" | ") for line in text.splitlines() if line.startswith(("| random", "| uni"))):
        assert row[4:6] == ["–", "–"]
        assert float(row[8].split()[0]) >= 0  # the divergence is known all the same
    assert len(list((tmp_path / "figures").iterdir())) == 1
    monkeypatch.setattr(sys, "argv", ["reproduce", "--out", str(tmp_path / "R.md")])
    main()
    assert (tmp_path / "R.md").read_text() == text


def test_a_published_strategy_is_a_row_and_no_winner(runs, tmp_path):
    copy = shutil.copytree(runs, tmp_path / "runs")
    path = copy / "uniform_0/strategy.json"
    facts = json.loads(path.read_text())
    facts["provenance"] = {"agent": "amc_published", "source": "elsewhere"}
    path.write_text(json.dumps(facts))
    jobs = by_job(read_results([copy]))
    assert "| amc_published | 0 |" in tables(jobs, "random")
    write_strategies(jobs, tmp_path / "strategies")
    assert not list((tmp_path / "strategies").glob("*amc_published*"))


def test_recipes_without_a_run_are_named_if_any_recipe_ran(runs):
    assert not_run([experiment_of(result.provenance) for result in read_results([runs])]) == ""
    names = sorted(path.stem for path in (Path(conf.__file__).parent / "experiment").glob("*.yaml"))
    ran = experiment_of({"command": f"amc experiment={names[0]} seed=1"})
    text = not_run([ran, None])
    assert [name for name in names if f"experiment={name} " in text] == names[1:]
    assert experiment_of({"command": f"amc experiment={names[0]} data.search_val_dir=photos"}) is None


def test_the_best_so_far_ignores_networks_over_the_budget():
    episodes = [
        {"return": value, "phase": phase}
        for value, phase in [(9, "relaxed"), (1, "warmup"), (0, "search"), (8, "relaxed"), (2, "search")]
    ]
    first, *others = best_so_far(episodes)
    assert first != first
    assert others == [1, 1, 1, 2]


def test_returns_are_averaged_over_seeds_and_a_window():
    returns = [[float(place) for place in range(30)], [float(place) + 2.0 for place in range(31)]]
    found = smoothed(returns)
    assert len(found) == 30 - WINDOW + 1
    assert found[0] == pytest.approx(sum(range(WINDOW)) / WINDOW + 1.0)
