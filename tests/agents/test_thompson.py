"""Thompson sampling on a network whose error curves are each wrong by one factor."""

from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest

from agents import ThompsonSettings, evolution_search, thompson_search
from agents.belief import LEAST_FACTOR, Belief
from agents.evolution import EvolutionSettings
from amc.budget.budget import make_budget
from amc.budget.weighing import greedy_widths
from amc.budget.widths import width_space
from amc.result import Evaluation
from envs import ChannelPruningEnv, get_reward
from envs.observation import GroupFeatures

FACTORS = (2.0, 0.5, 1.0, 0.4, 2.5, 1.0)
GROUPS = len(FACTORS)
DENSE = 40
CURVE = tuple((1 - width / DENSE) ** 2 for width in range(DENSE + 1))
NAMES = [f"layer{i}" for i in range(GROUPS)]
SPACE = width_space(NAMES, [DENSE] * GROUPS, round_to=1, min_preserve_ratio=0.1)


class WrongCurves:
    """Its losses are ``FACTORS`` times those of the curves; every channel costs the same."""

    def macs(self, widths):
        return sum(widths)

    def evaluate(self, widths):
        loss = sum(factor * CURVE[width] for factor, width in zip(FACTORS, widths, strict=True)) / 10
        share = sum(widths) / (DENSE * GROUPS)
        return Evaluation(tuple(widths), 0.0, loss, -loss, -loss, sum(widths), sum(widths), share, share, 0.0)


BUDGET = make_budget("macs", 0.5, sum, SPACE.dense, fit="scale")


COARSE = width_space(NAMES, [DENSE] * GROUPS, round_to=10, min_preserve_ratio=0.1)


def env(space=SPACE):
    features = [GroupFeatures(i, DENSE, 8, 4, 4, 1, 1, 100, 50) for i in range(GROUPS)]
    return ChannelPruningEnv(WrongCurves(), space, BUDGET, get_reward("agreement"), features)


def allocate(factors, space=SPACE):
    return best_network(tuple(factors), space)


@cache
def best_network(factors, space):
    scaled = {name: [factor * error for error in CURVE] for name, factor in zip(NAMES, factors, strict=True)}
    return tuple(width / DENSE for width in greedy_widths(space, BUDGET, scaled))


def search(seed=0, episodes=30, envs=1, space=SPACE, requests=allocate, **settings):
    seen = []
    result = thompson_search(
        [env(space) for _ in range(envs)],
        episodes,
        seed,
        seen.append,
        allocate=requests,
        network=partial(allocate, space=space),
        errors=lambda episode: [CURVE[round(ratio * DENSE)] for ratio in episode.network],
        ceiling=lambda _: 0.0,
        groups=GROUPS,
        settings=ThompsonSettings(**settings),
    )
    return result, seen


def test_it_finds_the_allocation_of_the_true_factors():
    best = WrongCurves().evaluate([round(DENSE * action) for action in allocate(FACTORS)]).agreement
    for seed in range(3):
        result, seen = search(seed, prior=0.7)
        start = seen[0].value
        assert seen[0].executed == pytest.approx(allocate([1.0] * GROUPS))
        assert best >= result.best.value > start + 0.95 * (best - start)


def test_it_needs_fewer_episodes_than_evolution():
    for seed in range(3):
        settings = EvolutionSettings(guide=allocate([1.0] * GROUPS))
        evolved = evolution_search([env()], 30, seed, lambda _: None, settings=settings)
        assert search(seed, prior=0.7)[0].best.value > evolved.best.value


@pytest.mark.slow
def test_same_seed_same_search():
    assert search(1)[1] == search(1)[1]
    assert search(1)[1] != search(2)[1]


def test_a_batch_is_drawn_from_one_belief_and_networks_do_not_repeat():
    result, seen = search(episodes=11, envs=3)
    assert [episode.index for episode in seen] == list(range(11))
    assert result.episodes == 11
    assert len({episode.executed for episode in seen}) == 11
    alone = search(episodes=11)[1]
    assert alone[0] == seen[0]
    assert alone[1] != seen[1]  # the first episode was learned from, or not


def test_factors_of_a_known_network_are_drawn_again():
    """Many factors have the same best network where widths are coarse."""

    def requests(factors):  # that differ where their network is the same
        shares = np.array(factors) / sum(factors)
        return tuple(np.array(allocate(factors, COARSE)) - 1e-4 * shares)

    _, seen = search(episodes=12, space=COARSE, requests=requests)
    assert len({episode.network for episode in seen}) > 9


def test_a_guide_is_carried_out_first():
    guide = (0.6, 0.4, 0.6, 0.4, 0.6, 0.4)
    _, seen = search(guide=guide, episodes=3)
    assert seen[0].requested == pytest.approx(guide)


def test_the_belief_is_that_of_linear_regression():
    belief = Belief(2, prior=0.5, noise=0.1)
    rows, losses = np.array([[0.4, 0.6], [0.9, 0.2], [0.3, 0.3]]), np.array([1.0, 1.2, 0.5])
    for row, loss in zip(rows, losses, strict=True):
        belief.learn(row, loss)
    covariance = np.linalg.inv(np.eye(2) / 0.25 + rows.T @ rows / 0.01)
    mean = covariance @ (np.ones(2) / 0.25 + rows.T @ losses / 0.01)
    draws = np.array([belief.draw(np.random.default_rng(seed), 1.0) for seed in range(4000)])
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.02)
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.1 * covariance.max())


def test_factors_stay_positive():
    belief = Belief(2, prior=10.0, noise=0.02)
    draw = partial(belief.draw, spread=1.0)
    assert min(draw(np.random.default_rng(seed)).min() for seed in range(20)) == LEAST_FACTOR


def test_a_network_without_loss_breaks_nothing():
    curves = replace(ThompsonSettings(), prior=0.1)
    seen = []
    thompson_search(
        [env()],
        5,
        0,
        seen.append,
        allocate=allocate,
        network=allocate,
        errors=lambda _: [0.0] * GROUPS,
        ceiling=lambda _: -1.0,
        groups=GROUPS,
        settings=curves,
    )
    assert len(seen) == 5
    assert all(np.isfinite(episode.executed).all() for episode in seen)


@pytest.mark.parametrize("bad", [{"prior": 0.0}, {"noise": -1.0}])
def test_impossible_settings_are_named(bad):
    with pytest.raises(ValueError, match=f"agent.{next(iter(bad))} is"):
        ThompsonSettings(**bad)


def test_a_first_network_that_loses_nothing_sets_no_scale():
    belief = Belief(2, prior=1.0, noise=0.1)
    belief.learn([1.0, 1.0], 0.0)
    belief.learn([1.0, 2.0], 0.01)
    assert np.abs(belief.mean).max() < 100
