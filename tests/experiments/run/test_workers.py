from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path

import pytest

from amc.strategy import Strategy
from experiments.stages.policies.keeper import same_search, settings_digest
from tests.experiments.helpers import (
    TINY,
    amc,
    composed,
    done,
    inside,
    interrupt,
    read_json,
    read_lines,
    refused,
    timeless,
    workspace,
)

SEARCH = (
    "run_dir=run", "stages=[search]", "threads=1", "budget.round_to=1", "model=mynet.Net", "seed=1",
    "agent=evolution", "agent.episodes=7", "agent.warmup_episodes=2", "agent.population=2",
)  # fmt: skip

NET = """
class Net(nn.Module):  # of a class that workers have to import
    def __init__(self, num_classes):
        super().__init__()
        self.body = make(num_classes)

    def forward(self, images):
        return self.body(images)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A current directory with a trained run; its tests work on copies."""
    cwd = workspace(tmp_path_factory.mktemp("trained"))
    with (cwd / "mynet.py").open("a") as file:
        file.write(NET)
    done(*TINY, "model=mynet.Net", "run_dir=run", "stages=[train]", cwd=cwd)
    return cwd


@pytest.fixture
def cwd(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # The current directory of the process is another one in these tests, so it is put on the path by name.
    monkeypatch.syspath_prepend(tmp_path / "cwd")
    return shutil.copytree(trained, tmp_path / "cwd")


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["workers=thread"], ["thread", "process", "ray", "serial"]),
        (["workers.kind=thread"], ["workers.kind is 'thread'", "serial, process, ray"]),
        (["workers=process", "workers.count=0"], ["workers.count is 0", "at least 1"]),
        (["workers=process", "workers.threads=0"], ["workers.threads is 0", "at least 1"]),
        (["workers=process", "workers.address=auto"], ["workers.address is 'auto'", "workers=ray"]),
        (["workers=process", "workers.cuont=2"], ["cuont"]),
        (
            ["workers.count=8", "workers.threads=2"],
            ["workers.count=8 is about workers", "write workers=proc"],
        ),
    ],
    ids=lambda value: value[-1],
)
def test_bad_workers_are_refused_before_any_work(
    tmp_path: Path, overrides: list[str], parts: list[str]
) -> None:
    refused(amc(*TINY, *overrides, "run_dir=run", cwd=workspace(tmp_path)), *parts)
    assert not (tmp_path / "run/dense.safetensors").exists()


@pytest.mark.slow
def test_one_worker_makes_the_serial_search(cwd: Path) -> None:
    done(*SEARCH, cwd=cwd)
    serial = cwd.parent / "serial"
    (cwd / "run").rename(serial)
    shutil.copytree(serial, cwd / "run", ignore=shutil.ignore_patterns("evaluations.jsonl", "search.jsonl"))
    done(*SEARCH, "workers=process", "workers.count=1", cwd=cwd)
    assert (cwd / "run/strategy.json").read_bytes() == (serial / "strategy.json").read_bytes()
    assert timeless(cwd / "run/search.jsonl") == timeless(serial / "search.jsonl")
    assert all(line["seconds"] > 0 for line in read_lines(cwd / "run/search.jsonl"))
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_two_workers_make_the_same_search_twice(cwd: Path) -> None:
    done(*SEARCH, "workers=process", cwd=cwd)
    first = cwd.parent / "first"
    shutil.copytree(cwd / "run", first)
    for name in ("evaluations.jsonl", "search.jsonl", "strategy.json"):
        (cwd / "run" / name).unlink()
    done(*SEARCH, "workers=process", cwd=cwd)
    assert (cwd / "run/strategy.json").read_bytes() == (first / "strategy.json").read_bytes()
    assert timeless(cwd / "run/search.jsonl") == timeless(first / "search.jsonl")
    lines = read_lines(cwd / "run/search.jsonl")
    assert [line["episode"] for line in lines] == list(range(7))
    assert read_json(cwd / "run/strategy.json")["provenance"]["workers"] == 2
    evaluations = read_lines(cwd / "run/evaluations.jsonl")
    widths = {tuple(line["widths"]) for line in evaluations}
    assert len(evaluations) == len(widths)
    assert widths == {tuple(line["widths"]) for line in lines}
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_stopped_search_with_workers_goes_on_to_the_same_result(cwd: Path) -> None:
    search = (*SEARCH, "workers=process", "reward=mynet.score")
    whole = shutil.copytree(cwd, cwd.parent / "whole")
    interrupt(cwd, 3)
    refused(amc(*search, cwd=cwd), "best strategy of 2 episodes", "run_dir=", status=130)
    assert not multiprocessing.active_children()
    assert len(read_lines(cwd / "run/search.jsonl")) == 2
    (cwd / "interrupt").unlink()
    done("run_dir=run", cwd=cwd)
    done(*search, cwd=whole)
    assert (cwd / "run/strategy.json").read_bytes() == (whole / "run/strategy.json").read_bytes()
    assert timeless(cwd / "run/search.jsonl") == timeless(whole / "run/search.jsonl")


@pytest.mark.slow
def test_the_number_of_workers_is_part_of_a_search(cwd: Path) -> None:
    done(*SEARCH, cwd=cwd)
    path = cwd / "run/strategy.json"
    serial = Strategy.load(path)
    assert "workers" not in serial.provenance
    text = json.loads(path.read_text())
    text["provenance"]["workers"] = 2
    path.write_text(json.dumps(text))
    two = Strategy.load(path)
    assert same_search(serial, serial)
    assert same_search(two, two)
    assert not same_search(serial, two)


def test_the_settings_of_the_agent_are_part_of_a_search(tmp_path: Path) -> None:
    for name in ("one", "copy"):
        (tmp_path / name).write_bytes(b"an actor")
    given = ("", "agent.guide=uniform", "agent.pretrained=one", "agent.pretrained=copy")
    with inside(tmp_path):
        found = [settings_digest(composed(*filter(None, [word])).agent) for word in given]
    assert len(set(found)) == 3
    assert found[2] == found[3]
