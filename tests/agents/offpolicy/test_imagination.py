"""DDPG with a world model, on a separable problem whose optimum is known."""

from dataclasses import replace

import numpy as np
import pytest

from agents import ddpg_search
from agents.offpolicy.diagnostics import FEWEST
from amc.result import Evaluation
from envs import GroupFeatures, get_reward
from experiments.config.agents import make_agent
from experiments.config.arena import Arena
from experiments.config.presets import agent_preset
from tests.agents.test_thompson import BUDGET, CURVE, FACTORS, GROUPS, NAMES, SPACE, WrongCurves
from tests.golden import preset

CURVES = dict.fromkeys(NAMES, CURVE)
FEATURES = [GroupFeatures(i, 40, 8, 4, 4, 1, 1, 100, 50) for i in range(GROUPS)]


def arena(network=None, reward=None):
    """A network whose losses are ``FACTORS`` times those of the error curves."""
    parts = (network or WrongCurves(), SPACE, BUDGET, reward or get_reward("agreement"), FEATURES)
    return Arena(*parts, curves=lambda: CURVES, dense=lambda: WrongCurves().evaluate(SPACE.dense))


def search(seed=0, episodes=21, count=1, **changed):
    seen = []
    config = agent_preset("ddpg", episodes=episodes, imagined=32, **changed)
    return make_agent(config, arena(), seed)(count, seen.append), seen


def known_optimum():
    widths = arena().allocation(FACTORS)
    return WrongCurves().evaluate(widths).agreement


@pytest.mark.slow
def test_the_policy_itself_beats_its_start_and_nears_the_optimum():
    """Without noise, over five seeds: what the actor has learned, not what exploration has met."""
    gains = []
    for seed in range(5):
        _, seen = search(seed)
        start, learned = seen[0].value, seen[-1].learning["policy_return"]
        gains.append((learned - start) / (known_optimum() - start))
    assert min(gains) > 0.0
    assert np.median(gains) > 0.5


def test_the_first_episode_is_the_greedy_allocation():
    _, seen = search(episodes=1)
    assert seen[0].info["evaluation"].widths == arena().greedy()
    assert seen[0].learning["explored"] == 0.0


@pytest.mark.slow
def test_episodes_go_on_when_the_buffer_overwrites_the_first():
    result, seen = search(episodes=12, replay_size=5 * GROUPS + 1)
    assert result.episodes == len(seen) == 12


@pytest.mark.slow
def test_every_fifth_episode_acts_without_noise():
    _, seen = search(episodes=16)
    still = [episode.index for episode in seen if episode.learning["explored"] == 0.0]
    assert set(still) >= {0, 5, 10, 15}
    for episode in seen[1:5]:
        assert episode.learning["explored"] > 0.5
    returns = [episode.learning["policy_return"] for episode in seen]
    assert returns[5] == seen[5].value == returns[6]


@pytest.mark.slow
def test_every_fifth_episode_has_one_without_noise_in_its_batch():
    _, seen = search(episodes=16, count=2)
    still = [episode.index for episode in seen if episode.learning["explored"] == 0.0]
    assert set(still) >= {0, 4, 10, 14}


@pytest.mark.slow
def test_the_critics_rank_correlation_is_told_once_there_are_episodes():
    _, seen = search(episodes=12)
    ranks = [episode.learning["critic_rank"] for episode in seen]
    assert ranks[: FEWEST - 1] == [None] * (FEWEST - 1)
    assert all(-1 <= rank <= 1 for rank in ranks[FEWEST:] if rank is not None)
    assert any(rank is not None for rank in ranks)


@pytest.mark.slow
def test_same_seed_same_search():
    assert search(1, 12)[1] == search(1, 12)[1]
    assert search(1, 12)[1] != search(2, 12)[1]


@pytest.mark.slow
def test_several_environments_share_one_policy():
    result, seen = search(episodes=11, count=3)
    assert [episode.index for episode in seen] == list(range(11))
    assert result.episodes == 11
    assert seen[3].learning["explored"] == 0  # for episode 5, which is of the same batch


def test_imagined_episodes_are_not_evaluated():
    class Counting(WrongCurves):
        calls = 0

        def evaluate(self, widths) -> Evaluation:
            self.calls += 1
            return super().evaluate(widths)

    network = Counting()
    make_agent(agent_preset("ddpg", episodes=12), arena(network), 0)(1, lambda _: None)
    assert network.calls == 12


def test_the_agent_is_saved_without_its_world(tmp_path):
    result, _ = search(episodes=8)
    result.save(tmp_path / "agent.zip")
    assert (tmp_path / "agent.zip").stat().st_size > 1000


def test_without_a_world_no_episode_is_imagined():
    seen = []
    settings = replace(preset("ddpg", (0.5,) * GROUPS), warmup_episodes=2)
    env = arena().env("weights")
    ddpg_search([env], 6, 0, seen.append, settings=settings, episode_length=GROUPS)
    assert len(seen) == 6
    assert seen[-1].learning["policy_return"] == pytest.approx(seen[5].value)
