"""DDPG through the command, and which episodes a run folder takes for its best."""

import resource
import signal
import zipfile
from pathlib import Path

import pytest

from agents import Episode
from amc.files import is_temporary
from experiments.run.episodes import EpisodeWriter
from tests.experiments.helpers import TINY, amc, done, read_json, read_lines, refused, timeless, workspace
from tests.fakes import FakeNetwork

SEARCH = (*TINY, "reward=accuracy", "run_dir=run", "stages=[train,search]")


def test_a_learning_agent_starts_at_the_greedy_allocation_and_is_kept(tmp_path: Path) -> None:
    agent = "ddpg"
    one, other, greedy = (workspace(tmp_path / name) for name in ("one", "other", "greedy"))
    for cwd in (one, other):
        outcome = done(*SEARCH, f"agent={agent}", cwd=cwd)
        assert f"search: {agent} found" in outcome.out
    done(*SEARCH, "agent=greedy", cwd=greedy)
    episodes = timeless(one / "run/search.jsonl")
    assert [line["phase"] for line in episodes] == ["warmup", "warmup", "search", "search"]
    assert episodes[0]["widths"] == read_lines(greedy / "run/search.jsonl")[0]["widths"]
    assert episodes == timeless(other / "run/search.jsonl")
    assert zipfile.is_zipfile(one / "run/agent.zip")
    assert read_json(one / "run/strategy.json")["provenance"]["agent"] == agent
    found = read_json(one / "run/stages/search.json")
    assert found["dense_return"] == pytest.approx(
        found["dense_top1"] / 100 - 1
    )  # measured, not guessed later


@pytest.mark.slow
def test_a_search_starts_at_the_best_of_the_allocations_that_need_none(tmp_path: Path) -> None:
    cwd = workspace(tmp_path)
    for agent in ("greedy", "global_l1", "uniform"):
        done(*SEARCH, f"agent={agent}", f"run_dir={agent}", cwd=cwd)
    done(*SEARCH, "agent=ddpg", "agent.guide=best", "agent.episodes=6", "agent.warmup_episodes=1", cwd=cwd)
    ruled = [read_lines(cwd / agent / "search.jsonl")[0] for agent in ("greedy", "global_l1", "uniform")]
    episodes = read_lines(cwd / "run/search.jsonl")
    different = list(dict.fromkeys(tuple(line["widths"]) for line in ruled))
    assert [tuple(line["widths"]) for line in episodes[: len(different)]] == different
    assert [line["episode"] for line in episodes] == list(range(6))
    only_draws = amc(*SEARCH, "agent=random", "agent.guide=best", "run_dir=random", cwd=cwd)
    refused(only_draws, "agent=random starts from none")
    best = max(ruled, key=lambda line: line["return"])
    assert episodes[len(different)]["widths"] == best["widths"]
    assert zipfile.is_zipfile(cwd / "run/agent.zip")


@pytest.mark.parametrize(
    ("agent", "setting", "told"),
    [
        ("ddpg", "sigma_decay=0", "agent.sigma_decay is 0.0; expected"),
        ("evolution", "tau=0.1", "tau"),  # it learns nothing
        ("ddpg", "pretrained=mynet.py", "mynet.py cannot be read as an actor of experiments.pretrain"),
    ],
)
def test_impossible_settings_are_refused_before_any_work(
    tmp_path: Path, agent: str, setting: str, told: str
) -> None:
    cwd = workspace(tmp_path)
    refused(amc(*SEARCH, f"agent={agent}", f"agent.{setting}", cwd=cwd), told)
    assert not (cwd / "run/dense.safetensors").exists()


def test_a_search_that_fills_the_disk_leaves_the_former_one(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("search.jsonl", "search.json")]
    for file in files:
        file.write_text(file.name)
    times = [file.stat().st_mtime_ns for file in files]
    evaluation = FakeNetwork((40, 40), (0.9, 0.5)).evaluate((20, 20))
    before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[0][1]))  # writing fails, and so does closing
    try:
        with pytest.raises(OSError, match="too large"), EpisodeWriter(files[0], record=files[1]) as writer:
            writer.write(Episode(0, "search", (0.5, 0.5), (0.5, 0.5), 1.0, {}), evaluation)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[0])
        signal.signal(signal.SIGXFSZ, before[1])
    assert [file.read_text() for file in files] == ["search.jsonl", "search.json"]
    assert [file.stat().st_mtime_ns for file in files] == times
    assert sorted(tmp_path.iterdir()) == sorted(files)
    with EpisodeWriter(files[0], record=files[1]):
        assert all(is_temporary(each.name) for each in {*tmp_path.iterdir()} - {files[0]})
    assert list(tmp_path.iterdir()) == files[:1]


def test_a_relaxed_episode_is_written_but_never_the_best(tmp_path: Path) -> None:
    network = FakeNetwork((40, 40), (0.9, 0.5))
    evaluations = [network.evaluate(widths) for widths in ((36, 20), (20, 20), (28, 20))]
    best = []
    with EpisodeWriter(tmp_path / "search.jsonl") as writer:
        for index, evaluation in enumerate(evaluations):
            phase = "search" if index else "relaxed"
            episode = Episode(index, phase, (0.5, 0.5), (0.5, 0.5), -evaluation.loss, {})
            improves = writer.improves(episode)
            writer.write(episode, evaluation)
            best.append((improves, writer.best_evaluation))
    assert best == [(False, None), (True, evaluations[1]), (True, evaluations[2])]
    phases = [line["phase"] for line in read_lines(tmp_path / "search.jsonl")]
    assert phases == ["relaxed", "search", "search"]
    assert writer.best_value == -evaluations[2].loss < -evaluations[0].loss
