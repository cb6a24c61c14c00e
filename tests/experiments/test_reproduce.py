"""Tables from run folders that real runs have left."""

import json
import shutil
import sys

import pytest

from experiments.reproduce import main, read_results, shown_command, tables
from tests.experiments.helpers import SMALL, done, workspace


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    cwd = workspace(tmp_path_factory.mktemp("reproduce"))
    stages = "stages=[train,search,prune,evaluate]"
    for agent, seed in (("uniform", 0), ("random", 0), ("random", 1)):
        done(*SMALL, f"agent={agent}", f"seed={seed}", stages, f"run_dir=runs/{agent}_{seed}", cwd=cwd)
    return cwd / "runs"


def test_a_row_an_agent_over_its_seeds_with_the_difference_to_another(runs):
    results = read_results([runs])
    text = tables(results, "random")
    rows = {
        line.split(" | ")[0][2:]: line.split(" | ") for line in text.splitlines() if line.startswith("| ")
    }
    assert set(rows) == {"agent", "random", "uniform"}
    assert rows["random"][1] == "0, 1"
    by_agent = {(result.agent, result.seed): result.top1("pruned") for result in results}
    mean = (by_agent["random", 0] + by_agent["random", 1]) / 2
    assert float(rows["random"][4].split()[0]) == pytest.approx(mean, abs=0.01)
    assert float(rows["uniform"][8].split()[0].rstrip("|")) == pytest.approx(
        by_agent["uniform", 0] - mean, abs=0.01
    )
    assert "50% of the macs" in text


def test_searches_that_judge_differently_have_tables_of_their_own(runs, tmp_path):
    copy = shutil.copytree(runs, tmp_path / "runs")
    config = copy / "random_1/.hydra/config.yaml"
    text = config.read_text()
    assert "sequential_images: 0" in text
    config.write_text(text.replace("sequential_images: 0", "sequential_images: 16"))
    heads = [line for line in tables(read_results([copy]), "random").splitlines() if line.startswith("## ")]
    assert sorted(head.rpartition(", ")[2] for head in heads) == [
        "judged on 32 images",
        "judged on 32 images after a refit on 16",
    ]


def test_a_machine_is_not_named_in_a_command():
    command = "amc model.checkpoint=/home/me/net.th data.root=/data/x seed=1 stages=[a,b] run_dir=/tmp/r"
    assert shown_command(command) == "amc model.checkpoint=FILE.th data.root=DIR seed=1 stages=[a,b]"


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


def test_the_tables_are_written_to_a_file(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["reproduce", str(runs), "--out", str(tmp_path / "R.md")])
    main()
    assert (tmp_path / "R.md").read_text().startswith("# Results")
