"""What the catalogue of faults is made of: copies before each change, facts, outcomes that are kept."""

import json
import os
import subprocess
import sys

import pytest

from amc.errors import FileError
from amc.files import atomic_write_text, is_temporary
from experiments.benchmark.faults import catalogue
from experiments.benchmark.faults.bench import PACKAGES, Fault
from experiments.benchmark.faults.crashes import copying
from experiments.benchmark.faults.facts import facts, names
from experiments.run.provenance import commit


def test_a_folder_is_copied_before_each_change_of_a_file(tmp_path):
    folder, copies = tmp_path / "run", tmp_path / "copies"
    if (process := os.fork()) == 0:  # audit hooks stay until the process ends
        try:
            copying(folder, copies)()
            folder.mkdir()
            atomic_write_text(folder / "a", "one")
            (tmp_path / "b").write_text("outside")
            atomic_write_text(folder / "a", "two")
        finally:
            os._exit(0)
    os.waitpid(process, 0)
    states = [
        {"?" if is_temporary(path.name) else path.name: path.read_text() for path in copy.glob("run/*")}
        for copy in sorted(copies.iterdir())
    ]
    assert states == [{}, {}, {"?": "one"}, {"a": "one"}, {"?": "two", "a": "one"}, {"a": "two"}]
    assert [(copy / "run").exists() for copy in sorted(copies.iterdir())] == [False, *[True] * 5]


def test_commands_in_processes_of_their_own_find_the_packages_and_shadow_no_module(tmp_path):
    code = "import amc, experiments, statistics; statistics.median; print(experiments.__file__)"
    found = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": PACKAGES},
    )  # fmt: skip
    assert found.stdout.strip() == os.path.join(PACKAGES, "experiments", "__init__.py")


def test_facts_are_values_without_times_and_digests(tmp_path):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/train.json").write_text(json.dumps({"a": [1, {"stage_seconds": 3, "b": None}]}))
    (tmp_path / "search.jsonl").write_text('{"return": 0.5, "seconds": 2}\n{"return": 1}\n')
    (tmp_path / "x.bin").write_bytes(b"x")
    (tmp_path / "amc.log").write_text("12:00")
    found = facts(tmp_path)
    assert found.pop("x.bin") != facts(tmp_path / "stages").get("x.bin")
    assert found == {
        "search.jsonl line 1: return": 0.5,
        "search.jsonl line 2: return": 1,
        "stages/train.json: a: length": 2,
        "stages/train.json: a: 0": 1,
        "stages/train.json: a: 1: b": None,
    }
    assert names(tmp_path) == {"stages/train.json", "search.jsonl", "x.bin", "amc.log"}


def test_outcomes_of_this_commit_are_not_tried_again(tmp_path):
    def attempt(bench):
        raise AssertionError("it was tried again")

    faults = [Fault("pictures", "one", attempt), Fault("pictures", "two", attempt)]
    out = tmp_path / "out.jsonl"
    lines = [
        {"commit": at, "kind": "pictures", "fault": name, "wrong": wrong}
        for at, name, wrong in (("other", "one", "x"), (commit(), "one", None), (commit(), "two", "bad"))
    ]
    out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = catalogue._outcomes(faults, out)
    assert found == {("pictures", "one"): None, ("pictures", "two"): "bad"}
    out.write_text("{}\n")
    with pytest.raises(FileError, match="remove it to try all faults again"):
        catalogue._outcomes(faults, out)
