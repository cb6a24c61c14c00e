from __future__ import annotations

import gc
import random
import re
import shutil
import signal
import subprocess
import time
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from tests.experiments.helpers import (
    TINY,
    amc,
    done,
    interrupt,
    read_json,
    read_lines,
    refused,
    spawn,
    timeless,
    workspace,
)

SEARCH = (
    "run_dir=run", "stages=[search]", "agent.episodes=16", "agent.warmup_episodes=5", "seed=2",
    "budget.round_to=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A current directory with a trained run; its tests work on copies."""
    cwd = workspace(tmp_path_factory.mktemp("trained"))
    done(*TINY, "data.search_val=256", "run_dir=run", "stages=[train]", cwd=cwd)
    return cwd


@pytest.fixture(scope="module")
def unbroken(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = shutil.copytree(trained, tmp_path_factory.mktemp("unbroken") / "cwd")
    done(*SEARCH, "reward=agreement", cwd=cwd)
    return cwd / "run"


def agent_tensors(folder: Path) -> dict[str, torch.Tensor]:
    with zipfile.ZipFile(folder / "agent.zip") as archive, archive.open("policy.pth") as file:
        return torch.load(file, weights_only=True)


def assert_same_result(run: Path, unbroken: Path) -> None:
    assert (run / "strategy.json").read_bytes() == (unbroken / "strategy.json").read_bytes()
    assert_same_search(run, unbroken)


def assert_same_search(run: Path, unbroken: Path) -> None:
    assert timeless(run / "search.jsonl") == timeless(unbroken / "search.jsonl")
    mine, theirs = agent_tensors(run), agent_tensors(unbroken)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def interrupted(cwd: Path, number: int) -> tuple[subprocess.Popen[str], str, str]:
    """Start the search as a process of its own and send it a signal some time after its second episode."""
    process = spawn(*SEARCH, "reward=agreement", cwd=cwd)
    try:
        log = cwd / "run/search.jsonl"
        deadline = time.monotonic() + 120
        while not (log.exists() and log.read_bytes().count(b"\n") >= 2):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.15))
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert not (cwd / "run/agent.zip").exists(), "the search ended before the signal"
    return process, out, err


def test_a_killed_search_goes_on_to_the_same_result(trained: Path, unbroken: Path, tmp_path: Path) -> None:
    cwd = shutil.copytree(trained, tmp_path / "cwd")
    process, _, _ = interrupted(cwd, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    before = (cwd / "run/evaluations.jsonl").read_text().splitlines()

    done("run_dir=run", cwd=cwd)

    assert_same_result(cwd / "run", unbroken)
    after = read_lines(cwd / "run/evaluations.jsonl")
    assert (cwd / "run/evaluations.jsonl").read_text().splitlines()[: len(before) - 1] == before[:-1]
    assert len(after) == len({tuple(line["widths"]) for line in after})
    assert len(after) == len(read_lines(unbroken / "evaluations.jsonl"))
    seconds = {tuple(line["widths"]): line["seconds"] for line in after}
    episodes = read_lines(cwd / "run/search.jsonl")
    assert all(line["seconds"] == seconds[tuple(line["widths"])] for line in episodes)


@pytest.mark.slow
def test_ctrl_c_keeps_the_best_strategy_and_says_how_to_go_on(
    trained: Path, unbroken: Path, tmp_path: Path
) -> None:
    cwd = shutil.copytree(trained, tmp_path / "cwd")
    process, _, err = interrupted(cwd, signal.SIGINT)
    assert process.returncode == 130
    assert err.count("\n") == 1
    count = int(re.search(r"best strategy of (\d+) episodes is in \S*run/strategy.json", err)[1])
    assert "run_dir=" in err
    episodes = read_lines(cwd / "run/search.jsonl")
    assert count in (len(episodes), len(episodes) - 1)  # the signal may fall between line and strategy
    best = [max(part, key=lambda line: line["return"]) for part in (episodes, episodes[:-1])]
    kept = [group["kept"] for group in read_json(cwd / "run/strategy.json")["groups"]]
    assert kept in [line["widths"] for line in best]

    done("run_dir=run", cwd=cwd)

    assert_same_result(cwd / "run", unbroken)


@pytest.mark.parametrize("name", ["SIGINT", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_a_search_stopped_by_a_signal_goes_on_to_the_same_result(
    trained: Path, unbroken: Path, tmp_path: Path, name: str
) -> None:
    cwd = shutil.copytree(trained, tmp_path / "cwd")
    interrupt(cwd, 4, name)  # the third episode: the dense network is scored once, too
    outcome = amc(*SEARCH, "reward=mynet.score", cwd=cwd)
    refused(outcome, "best strategy of 2 episodes", "run_dir=", "goes on", status=130)
    assert len(read_lines(cwd / "run/search.jsonl")) == 2
    assert (cwd / "run/strategy.json").exists()

    (cwd / "interrupt").unlink()
    done("run_dir=run", cwd=cwd)
    assert_same_search(cwd / "run", unbroken)
    records = [read_json(run / "stages/search.json") for run in (cwd / "run", unbroken)]
    assert [record.get("resumed", False) for record in records] == [True, False]
    assert list(cwd.glob("run/stages/*.begun")) == []


def test_a_half_written_line_of_a_killed_search_is_dropped(
    trained: Path, unbroken: Path, tmp_path: Path
) -> None:
    cwd = shutil.copytree(trained, tmp_path / "cwd")
    text = (unbroken / "evaluations.jsonl").read_text()
    (cwd / "run/evaluations.jsonl").write_text(text[: len(text) // 2])
    done(*SEARCH, "reward=agreement", cwd=cwd)
    assert_same_result(cwd / "run", unbroken)
    widths = [line["widths"] for line in read_lines(cwd / "run/evaluations.jsonl")]
    assert widths == [line["widths"] for line in read_lines(unbroken / "evaluations.jsonl")]


@pytest.mark.slow
def test_a_search_stopped_early_a_second_time_keeps_the_better_strategy(
    trained: Path, tmp_path: Path
) -> None:
    cwd = shutil.copytree(trained, tmp_path / "cwd")
    done(*SEARCH, "reward=mynet.score", "agent.episodes=12", cwd=cwd)
    value = read_json(cwd / "run/strategy.json")["provenance"]["value"]
    interrupt(cwd, 3)
    refused(amc(*SEARCH, "reward=mynet.score", "agent.episodes=12", cwd=cwd), "best strategy", status=130)
    assert read_json(cwd / "run/strategy.json")["provenance"]["value"] == value


def test_a_search_closes_its_files(trained: Path, tmp_path: Path) -> None:
    cwd = shutil.copytree(trained, tmp_path / "cwd")
    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        done("run_dir=run", "stages=[search]", cwd=cwd)
        gc.collect()
    assert [str(item.message) for item in caught if item.category is ResourceWarning] == []


def test_a_stage_that_takes_over_results_of_an_earlier_command_is_resumed(trained_run: Path) -> None:
    def resumed(stage: str, *own: str) -> bool:
        done("run_dir=run", f"stages=[{stage}]", "agent=random", *own, cwd=trained_run)
        return bool(read_json(trained_run / f"run/stages/{stage}.json").get("resumed", False))

    assert [resumed("search"), resumed("search")] == [False, True]
    assert [resumed("train"), resumed("train", "train.lr=0.02")] == [True, False]
    assert not resumed("search")  # of another dense network: nothing is known
