"""NetAdapt: it finds the optimum of a separable problem, counts its episodes and keeps the budget."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import NetAdaptSettings, netadapt_search
from amc.budget.allocation import one_group_smaller, uniform_widths
from amc.budget.budget import make_budget
from amc.budget.widths import width_space
from envs import ChannelPruningEnv, get_reward
from envs.observation import GroupFeatures
from tests.agents.helpers import Pausing
from tests.fakes import FakeNetwork


class Separable(FakeNetwork):
    """Every channel costs the same; a group's loss is the square of its share of removed channels."""

    def __init__(self, dense, weights):
        super().__init__(dense, (1.0,) * len(dense))
        self.weights = weights

    def macs(self, widths):
        return sum(widths)

    def evaluate(self, widths):
        parts = zip(self.weights, widths, self.dense, strict=True)
        loss = sum(weight * (1 - width / dense) ** 2 for weight, width, dense in parts) / sum(self.weights)
        return replace(super().evaluate(widths), top1=100 * (1 - loss))


class Problem:
    """A network with its environments and its proposals."""

    def __init__(self, network, ratio, *, round_to=1, errors=None):
        names = [f"layer{i}" for i in range(len(network.dense))]
        self.network, self.errors = network, errors or {}
        self.space = width_space(names, network.dense, round_to=round_to, min_preserve_ratio=0.2)
        reachable = network.macs(self.space.minimum) / network.macs(network.dense)
        ratio = min(1.0, max(ratio, reachable + 1e-9))
        self.budget = make_budget("macs", ratio, network.macs, network.dense, fit="cut")

    def env(self, *, enforced=True):
        features = [
            GroupFeatures(i, 8, 8, 4, 4, 1, 1, 100 * (i + 1), 50) for i in range(len(self.space.names))
        ]
        budget = replace(self.budget, enforced=enforced)
        return ChannelPruningEnv(self.network, self.space, budget, get_reward("accuracy"), features)

    def propose(self, actions, progress):
        widths = [self.space.nearest(group, action) for group, action in enumerate(actions)]
        limits = self.budget.eased(progress, self.space.dense).limits
        networks = one_group_smaller(self.space, limits, widths, self.errors)
        return [self.shares(network) for network in networks]

    def shares(self, widths):
        return tuple(width / dense for width, dense in zip(widths, self.space.dense, strict=True))

    def search(self, episodes, *, envs=1, pauses=(0.0,), **options):
        seen = []
        result = netadapt_search(
            [Pausing(self.env(), pauses) for _ in range(envs)],
            episodes,
            0,
            seen.append,
            relaxed=[Pausing(self.env(enforced=False), pauses) for _ in range(envs)],
            propose=self.propose,
            episode_length=len(self.space.names),
            target=self.budget.leading.ratio,
            settings=NetAdaptSettings(**options),
        )
        return result, seen


def separable(ratio=0.6):
    return Problem(Separable((8, 8, 8), (1.0, 3.0, 9.0)), ratio)


def test_it_reaches_the_optimum_of_a_separable_problem():
    problem = separable()
    result, _ = problem.search(100)
    allowed = [w for w in product(*problem.space.choices) if sum(w) <= problem.budget.leading.largest]
    best = max(allowed, key=lambda w: problem.network.evaluate(w).top1)
    assert result.best.info["evaluation"].widths == best
    assert len(set(best)) == 3  # the groups differ


def test_all_steps_but_the_last_are_relaxed_and_ever_smaller():
    problem = separable()
    result, seen = problem.search(100, steps=4)
    phases = [episode.phase for episode in seen]
    assert phases == sorted(phases)  # relaxed ones first
    assert {"relaxed", "search"} == set(phases)
    assert seen[-1].phase == "search"
    assert [episode.index for episode in seen] == list(range(result.episodes))
    macs = [episode.info["evaluation"].macs for episode in seen]
    assert macs == sorted(macs, reverse=True)
    assert macs[0] > problem.budget.leading.largest >= macs[-1]


def test_the_next_step_starts_from_the_best_of_a_step():
    _, seen = separable().search(100, steps=4, candidates=3)
    for first in range(0, 9, 3):
        winner = max(seen[first : first + 3], key=lambda episode: episode.value)
        for episode in seen[first + 3 : first + 6]:
            moved = [new != old for new, old in zip(episode.executed, winner.executed, strict=True)]
            assert sum(moved) == 1


def test_a_relaxed_episode_is_never_kept_though_it_is_better():
    problem = separable()
    result, seen = problem.search(30)
    assert max(seen, key=lambda episode: episode.value).phase == "relaxed"
    assert result.best.phase == "search"
    assert result.best.info["evaluation"].macs <= problem.budget.leading.largest


def test_the_short_list_holds_the_networks_of_least_error():
    errors = {f"layer{i}": [weight * (8 - w) for w in range(9)] for i, weight in enumerate((3.0, 1.0, 2.0))}
    problem = Problem(Separable((8, 8, 8), (1.0, 1.0, 1.0)), 0.9, errors=errors)
    _, seen = problem.search(2, steps=1, candidates=2)
    changed = [[ratio < 1 for ratio in episode.executed].index(True) for episode in seen]
    assert changed == [1, 2]


def test_the_guide_is_evaluated_first_and_the_result_is_no_worse():
    problem = separable()
    guide = problem.shares(uniform_widths(problem.space, problem.budget))
    result, seen = problem.search(30, guide=guide)
    assert seen[0].executed == guide
    assert seen[0].phase == "search"
    assert result.best.value >= seen[0].value
    lucky = problem.search(100)[0].best.executed
    assert problem.search(8, guide=lucky, steps=1, candidates=1)[0].best.executed == lucky


def test_a_budget_of_everything_keeps_everything():
    result, seen = separable(ratio=1.0).search(10)
    assert result.best.executed == (1.0, 1.0, 1.0)
    assert len(seen) == 1


def test_environments_at_the_same_time_change_nothing():
    one, alone = separable().search(40)
    other, together = separable().search(40, envs=3, pauses=(0.0, 0.002, 0.001))
    assert alone == together
    assert one.best == other.best


@settings(deadline=None, max_examples=60)
@given(
    episodes=st.integers(1, 60),
    dense=st.lists(st.integers(4, 16), min_size=1, max_size=6),
    ratio=st.floats(0.15, 1.0),
    steps=st.integers(0, 12),
    candidates=st.integers(0, 5),
    guided=st.booleans(),
    chain=st.booleans(),
    envs=st.integers(1, 2),
)
def test_it_ends_within_the_count_and_the_budget(
    episodes, dense, ratio, steps, candidates, guided, chain, envs
):
    network = (FakeNetwork if chain else Separable)(dense, [0.5 + 0.1 * i for i in range(len(dense))])
    problem = Problem(network, ratio, round_to=2)
    left = episodes - 1 if guided and episodes > 1 else episodes
    candidates = min(candidates, left)
    steps = min(steps, left // max(candidates, 1))
    guide = problem.shares(problem.space.minimum) if guided else ()
    result, seen = problem.search(episodes, envs=envs, steps=steps, candidates=candidates, guide=guide)
    assert not guided or episodes == 1 or seen[0].requested == pytest.approx(guide)
    assert 1 <= len(seen) == result.episodes == network.calls <= episodes
    assert [episode.index for episode in seen] == list(range(len(seen)))
    assert seen[-1].phase == "search"
    assert result.best.eligible
    for episode in seen:
        if episode.eligible:
            assert episode.info["evaluation"].macs <= problem.budget.leading.largest
            assert (np.array(episode.executed) >= np.array(episode.requested) - 1e-6).all()  # they fit
            assert episode.value <= result.best.value


@pytest.mark.parametrize("bad", [{"steps": -1}, {"candidates": -2}])
def test_impossible_settings_are_named(bad):
    with pytest.raises(ValueError, match=f"agent.{next(iter(bad))} is"):
        NetAdaptSettings(**bad)


@pytest.mark.parametrize("bad", [{"steps": 9}, {"candidates": 9}, {"steps": 3, "candidates": 3}])
def test_more_networks_than_episodes_are_refused(bad):
    with pytest.raises(ValueError, match=r"agent.episodes is 8, but"):
        separable().search(8, **bad)
