"""Agents with several environments: counted, in order, and independent of the duration of a step."""

import threading
from functools import partial

import numpy as np
import pytest

from agents import (
    DDPGSettings,
    EvolutionSettings,
    ddpg_search,
    evolution_search,
    random_search,
)
from agents.offpolicy.ddpg import build_ddpg, explore
from agents.offpolicy.vectorized import ThreadedVecEnv
from tests.agents.helpers import OPTIMUM, Pausing, problems, uneven, updates

SMALL = {"warmup_episodes": 3, "hidden": (8,), "batch_size": 8}
GUIDE = (0.8, 0.4, 0.8, 0.4, 0.8, 0.4)
LENGTH = {"episode_length": len(OPTIMUM)}
AGENTS = {
    "random": random_search,
    "evolution": partial(evolution_search, settings=EvolutionSettings(population=3)),
    "evolution-guided": partial(evolution_search, settings=EvolutionSettings(guide=GUIDE)),
    "ddpg": partial(ddpg_search, settings=DDPGSettings(**SMALL), **LENGTH),
    "ddpg-guided": partial(
        ddpg_search,
        settings=DDPGSettings(**SMALL, guide=GUIDE, follow_best=True, sigma=0.15, explore_share=0.5),
        **LENGTH,
    ),
}
GUIDED = ("evolution-guided", "ddpg-guided")


def run(name, envs, episodes, seed=0):
    seen = []
    return AGENTS[name](envs, episodes, seed, seen.append), seen


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize(("count", "episodes"), [(2, 8), (3, 8), (3, 2), (2, 7)])
def test_exactly_the_wanted_episodes_are_run_and_reported_in_order(name, count, episodes):
    envs, networks = problems(count)
    threads = []

    def on_episode(episode):
        threads.append(threading.get_ident())
        seen.append(episode)

    seen = []
    result = AGENTS[name](envs, episodes, 0, on_episode)
    assert [e.index for e in seen] == list(range(episodes))
    assert sum(network.calls for network in networks) == episodes == result.episodes
    assert set(threads) == {threading.get_ident()}
    assert result.best == max(seen, key=lambda e: e.value)
    assert all(len(e.requested) == len(OPTIMUM) == len(e.executed) for e in seen)
    assert len({e.requested for e in seen}) > episodes / 2  # each draws for itself


@pytest.mark.parametrize("name", AGENTS)
def test_the_duration_of_a_step_does_not_change_the_search(name):
    (one, first), (other, second) = (run(name, uneven(3, seed), 8) for seed in (0, 1))
    assert first == second
    assert one.best == other.best
    assert run(name, problems(3)[0], 8)[1] == first
    assert run(name, problems(3)[0], 8, seed=1)[1] != first
    if name != "random":  # the others learn after every batch
        assert run(name, problems(2)[0], 8)[1] != first


@pytest.mark.parametrize("name", AGENTS)
def test_episodes_of_a_batch_are_run_in_threads_of_their_own(name):
    envs = [Pausing(env, [0.0]) for env in problems(2)[0]]
    run(name, envs, 4)
    assert threading.get_ident() not in {thread for env in envs for thread in env.threads}


@pytest.mark.parametrize("name", GUIDED)
def test_one_episode_carries_out_the_guide(name):
    _, seen = run(name, problems(3)[0], 6)
    assert seen[0].requested == pytest.approx(GUIDE, abs=1e-5)
    assert all(np.abs(np.array(e.requested) - GUIDE).max() > 1e-3 for e in seen[1:3])


def test_warm_up_and_noise_go_by_the_first_episode_of_a_batch():
    envs, _ = problems(2)
    settings = DDPGSettings(**SMALL, sigma=0.4, sigma_decay=0.5)
    model = build_ddpg(envs, settings, 0, len(OPTIMUM))
    phases, sigmas = [], []

    def on_episode(episode):
        phases.append(episode.phase)
        sigmas.append(model.policy.sigma)

    explore(model, 8, on_episode, settings, len(OPTIMUM))
    assert phases == ["warmup"] * 4 + ["search"] * 4
    assert sigmas == [0.4, 0.4, 0.4, 0.4, 0.2, 0.2, 0.05, 0.05]


def test_no_episode_of_a_batch_is_compared_with_a_policy_that_the_batch_has_moved():
    settings = DDPGSettings(**SMALL, guide=GUIDE, follow_best=True, sigma=0.0)
    seen = []
    ddpg_search(problems(2)[0], 6, 0, seen.append, settings=settings, **LENGTH)
    assert [episode.learning["explored"] for episode in seen] == [0.0] * 6
    assert seen[1].learning["policy_return"] == seen[1].value


def test_all_of_a_warm_up_batch_is_uniform():
    """Three warm-up episodes, two at a time: the fourth is drawn uniformly to its end."""
    settings = DDPGSettings(**SMALL, sigma=0.0)
    seen = []
    ddpg_search(problems(2)[0], 6, 0, seen.append, settings=settings, episode_length=len(OPTIMUM))
    spread = [np.std(e.requested) for e in seen]
    assert min(spread[:4]) > 0.1 > max(spread[4:])  # an untrained actor gives similar actions


def test_there_are_as_many_updates_as_steps_after_warm_up():
    settings = DDPGSettings(**SMALL, updates_per_step=2)
    model = build_ddpg(problems(2)[0], settings, 0, len(OPTIMUM))
    explore(model, 10, lambda _: None, settings, len(OPTIMUM))
    learned_from = 10 - 4 - 2  # nothing is learned from warm-up alone, nor after the last batch
    assert updates(model) == learned_from * len(OPTIMUM) * 2


def test_a_surplus_environment_is_never_stepped():
    envs = [Pausing(env, [0.0]) for env in problems(3)[0]]
    run("ddpg", envs, 4)
    assert [len(env.threads) for env in envs] == [2 * len(OPTIMUM), len(OPTIMUM), len(OPTIMUM)]


def test_a_vector_of_environments_starts_over_after_the_last_step():
    envs, _ = problems(2, fit="cut")
    vector, start = ThreadedVecEnv(envs), problems(1)[0][0].reset()[0]
    assert vector.reset().tolist() == [start.tolist()] * 2
    for _ in OPTIMUM:
        observations, rewards, dones, infos = vector.step(np.array([[0.3], [0.7]], np.float32))
    assert dones.tolist() == [True, True]
    assert observations.tolist() == [start.tolist()] * 2
    assert rewards.tolist() == pytest.approx([info["return"] for info in infos])
    assert rewards[0] != rewards[1]
    assert [info["terminal_observation"][-1] for info in infos] == pytest.approx([0.3, 0.7], abs=0.02)


def test_an_error_in_an_environment_stops_the_search():
    envs, networks = problems(2)

    def broken(_widths):
        raise ValueError("the worker is gone")

    networks[1].evaluate = broken
    with pytest.raises(ValueError, match="the worker is gone"):
        run("ddpg", envs, 4)
