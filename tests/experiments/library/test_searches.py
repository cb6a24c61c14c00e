"""Searches of a task: by agents of the package, of the user and of other libraries."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import TD3

import amc
from agents import Episode, SearchEnded
from amc.errors import AmcError
from tests.experiments.library.helpers import LABELS, images, network


@pytest.mark.filterwarnings("ignore:.*ERROR")  # Gymnasium shows the other process's error, too
def test_environments_are_stepped_in_the_process_of_their_task() -> None:
    task = amc.CompressionTask(network(), images(16), images(16), macs_ratio=0.5, progress=False)
    for kind in (gym.vector.SyncVectorEnv, gym.vector.AsyncVectorEnv):
        envs = kind([task.env, task.env])
        envs.reset()
        actions = np.full((2, 1), 0.5, np.float32)
        for _ in range(task.env().episode_length - 1):
            envs.step(actions)
        there = kind is gym.vector.AsyncVectorEnv
        with pytest.raises(amc.SettingError, match=r"use .*SyncVectorEnv") if there else nullcontext():
            envs.step(actions)
        envs.close()
    assert task.result().report["search"]["evaluations"] == 1


def test_a_task_searches_with_its_own_seed_unless_another_is_given() -> None:
    task = amc.CompressionTask(
        network(), images(16), images(16), macs_ratio=0.5, round_to=1, seed=5, progress=False
    )
    own, same, other = (
        task.search("random", episodes=3, **given) for given in ({}, {"seed": 5}, {"seed": 0})
    )
    assert (own.strategy.seed, other.strategy.seed) == (5, 0)
    tried = [[line["widths"] for line in found.report["episodes"]] for found in (own, same, other)]
    assert tried[0] == tried[1] != tried[2]


@pytest.mark.parametrize(
    ("acts", "message"),
    [("ratio", "acts is 'ratio'; expected 'ratios' or 'weights'; did you mean 'ratios'"), (None, "is None")],
)
def test_a_misspelt_kind_of_actions_is_refused(acts: Any, message: str) -> None:
    task = amc.CompressionTask(network(), images(16), images(16), macs_ratio=0.5, progress=False)
    with pytest.raises(amc.SettingError, match=message):
        task.env(acts)


def test_whole_numbers_and_fractions_of_numpy_are_taken() -> None:
    task = amc.CompressionTask(
        network(), images(16), images(16), macs_ratio=0.5, round_to=np.int64(2), progress=False
    )
    settings = {"warmup_episodes": np.int64(1), "sigma": np.float32(0.5)}
    result = task.search("ddpg_paper", episodes=np.int64(2), seed=np.int64(3), **settings)
    assert len(result.report["episodes"]) == 2
    assert json.dumps(dict(result.report))


def test_a_callback_ends_a_search_with_the_result_so_far() -> None:
    task = amc.CompressionTask(network(), images(16), images(16), macs_ratio=0.5, round_to=1, progress=False)

    def end_third(episode: Episode) -> None:
        if episode.index == 2:
            raise SearchEnded

    assert len(task.search("random", episodes=6, on_episode=end_third).report["episodes"]) == 3
    with pytest.raises(AmcError, match=r"^the search was ended after 3 episodes, none of which may win"):
        task.search("netadapt", guide="none", episodes=12, steps=4, on_episode=end_third)


def test_netadapt_takes_its_steps_under_a_limit_on_the_bytes() -> None:
    """As int8 the dense network keeps a quarter of its bytes: the way to 0.1 starts there."""
    task = amc.CompressionTask(
        network(), images(16), images(16), size_ratio=0.1, round_to=1, min_preserve_ratio=0.1, progress=False
    )
    lines = task.search("netadapt", guide="none", episodes=9, steps=3).report["episodes"]
    phases = [line["phase"] for line in lines]
    assert phases[:6] == ["relaxed"] * 6
    assert set(phases[6:]) == {"search"}


OWN_AGENTS = """
from agents.baselines import random_search

def own(envs, episodes, seed, on_episode):
    return random_search(envs, episodes, seed + 1, on_episode)

def silent(envs, episodes, seed, on_episode):
    return random_search(envs, episodes, seed, lambda episode: None)

def nothing(envs, episodes, seed, on_episode):
    return None
"""


def test_an_agent_of_ones_own_is_named_as_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_agents.py").write_text(OWN_AGENTS)
    monkeypatch.syspath_prepend(tmp_path)
    task = amc.CompressionTask(network(), images(16), images(16), macs_ratio=0.5, round_to=1, progress=False)
    own = task.search("random", name="own_agents.own", episodes=3, seed=0)
    assert own.report["episodes"] == task.search("random", episodes=3, seed=1).report["episodes"]
    for name, message in (
        ("silent", "'own_agents.silent' returned a best episode that it has not given to on_episode"),
        ("nothing", "'own_agents.nothing' returned NoneType; expected agents.SearchResult"),
        ("missing", "own_agents has no 'missing'"),
    ):
        with pytest.raises(AmcError, match=message):
            task.search("random", name=f"own_agents.{name}", episodes=2)
    del sys.modules["own_agents"]


def test_the_networks_that_a_search_has_evaluated_are_its_own() -> None:
    task = amc.CompressionTask(network(), images(32), images(), macs_ratio=0.5, progress=False)
    for seed in (0, 1):
        report = task.search("random", episodes=5, seed=seed).report
        assert report["search"]["evaluations"] == len({tuple(line["widths"]) for line in report["episodes"]})


@pytest.mark.parametrize("acts", ["ratios", "weights"])
def test_an_agent_of_stable_baselines3_trains_on_the_environment_and_its_best_network_is_pruned(
    acts: Any,
) -> None:
    task = amc.CompressionTask(network(), images(32), (images(), LABELS), macs_ratio=0.5)
    env = task.env(acts)
    TD3("MlpPolicy", env, learning_starts=4, seed=0, device="cpu").learn(4 * env.episode_length)
    result = task.result()
    assert result.report["search"]["evaluations"] >= 1
    assert result.strategy.macs_ratio <= 0.5
    whole = task.graph.dense_widths
    with pytest.raises(amc.SettingError, match=r"over macs_ratio=0\.5"):
        task.prune(whole)
