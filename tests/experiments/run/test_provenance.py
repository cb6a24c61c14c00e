"""The commit and the command that results name."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.report.answers import point_command
from experiments.reproduce.commands import setting_of, words_of
from experiments.run import provenance
from experiments.run.folder import RunFolder

AUTHOR = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")


def repository(folder: Path) -> str:
    """Make a repository with one commit; return the commit."""
    folder.mkdir(parents=True, exist_ok=True)
    for command in (["init", "-q"], [*AUTHOR, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    told = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    )
    return told.stdout.strip()


def test_the_commit_of_a_stage_goes_with_its_record(tmp_path: Path) -> None:
    job, part = (RunFolder.made(tmp_path / name) for name in ("job", "job/part"))
    job.record("train", {})
    part.record("train", {})
    part.record("search", {})
    job.provenance.write_text(json.dumps({"commit": "new", "stage_commits": {"train": "old"}}))
    part.provenance.write_text(json.dumps({"commit": "new", "stage_commits": {"search": "new"}}))
    assert provenance.stage_commits(part.path, "prune", "later") == {"search": "new", "prune": "later"}
    provenance.hand_over(job.path, part.path, "train")
    assert provenance.kept_facts(part.path) == {"stage_commits": {"train": "old", "search": "new"}}
    part.provenance.unlink()
    provenance.hand_over(job.path, part.path, "train")
    assert provenance.stage_commits(part.path, "search", "later") == {"train": "old", "search": "later"}


def test_commands_that_trained_are_kept_beside_a_later_one(tmp_path: Path) -> None:
    run = RunFolder.made(tmp_path / "run")
    run.record("sparsify", {})
    run.provenance.write_text(json.dumps({"commit": None, "command": "amc finetune.epochs=3"}))
    kept = {"sparsified_by": "amc finetune.epochs=3"}
    assert provenance.former_commands(run.path, "report", "amc finetune.epochs=1") == kept
    assert provenance.former_commands(run.path, "report", "amc finetune.epochs=3") == {}
    assert provenance.former_commands(run.path, "sparsify", "amc finetune.epochs=1") == {}
    run.record("finetune", {})
    run.provenance.write_text(json.dumps({"commit": None, "command": "amc finetune.epochs=1", **kept}))
    found = provenance.former_commands(run.path, "report", "amc")
    assert found == {**kept, "tuned_by": "amc finetune.epochs=1"}
    assert provenance.kept_facts(run.path).items() >= kept.items()


@pytest.mark.parametrize("place", ["", "venv/lib/site-packages"])
def test_the_commit_is_that_of_the_product_itself(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, root = repository(tmp_path), tmp_path / place
    (root / "experiments/run").mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(root / "experiments/run/provenance.py"))
    assert provenance.commit() == (None if place else known)


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("model.kwargs={width: 2, deep: false}", "model.kwargs={width:2,deep:false}"),
        ("stages=[train, search, prune]", "stages=[train,search,prune]"),
        ("data.root=/home/me/my data", "data.root=/home/me/my data"),
        ("name=it's", "name=it's"),
        ("data.kwargs={name: 'a b'}", "data.kwargs={name:'a b'}"),
        ("seed=0", "seed=0"),
        ("model.kwargs={a: [", "model.kwargs={a: ["),
    ],
)
def test_a_command_keeps_its_words(word: str, kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["amc", word, "run_dir=a run", "seed=1"])
    command = provenance.command()
    assert shlex.split(command) == words_of(command) == ["amc", kept, "seed=1"]
    assert setting_of(command, kept.partition("=")[0]) in (kept.partition("=")[2], "1")
    report = {"folder": "run", "provenance": {"command": command}}
    words = shlex.split(point_command(report, {"strategy": "pareto/macs_01.json", "macs_ratio": 0.5}))
    assert all("=" in each for each in words[1:])
    assert words.count(kept) == (not kept.startswith("stages="))
