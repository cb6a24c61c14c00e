"""The environment of weights: its contract, its budget, and what zero actions mean."""

import math
import re
from dataclasses import replace
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from amc.budget.weighing import greedy_widths
from amc.errors import AmcError, SettingError
from envs import WEIGHTING_ENV_ID, ChannelWeightingEnv, actions_of, centred, get_reward, weights_of
from tests.fakes import fake_problem

quick = settings(deadline=None, max_examples=40, database=None)
OPTIMUM = (0.9, 0.3, 0.8, 0.4)
CURVES = {
    f"layer{place}": tuple(steep * (1 - width / 40) ** 2 for width in range(41))
    for place, steep in enumerate((1.0, 2.0, 1.5, 0.7))
}


def problem(ratio=0.5, reward=None):
    """Return the environment, its space and its budget."""
    plain, network, space, budget = fake_problem(OPTIMUM, ratio=ratio, reward=reward)
    return ChannelWeightingEnv(network, space, budget, plain._reward, FEATURES, CURVES), space, budget


def features():
    from envs import GroupFeatures

    return [GroupFeatures(i, 40, 40 if i else 3, 8 >> i, 8 >> i, 1, 1, 100 * (i + 1), 50) for i in range(4)]


FEATURES = features()


def play(env, actions):
    """Take actions; return the last step."""
    env.reset()
    for action in actions:
        last = env.step(np.array([action], dtype=np.float32))
    return last


def test_it_keeps_gymnasiums_contract(recwarn):
    check_env(problem()[0], skip_render_check=True)
    assert not recwarn.list


def test_an_action_that_is_no_number_is_refused():
    with pytest.raises(AmcError, match=r"the action for group 'layer2' is NaN; expected .* from -1 to 1"):
        play(problem()[0], [0.5, -0.5, math.nan])


def test_it_is_registered():
    env = gym.make(WEIGHTING_ENV_ID, factory=lambda: problem()[0])
    assert env.reset()[0].shape == (12,)


def test_the_table_of_observations_lists_every_feature():
    from envs import CURVE_FEATURES

    rows = re.findall(r"\| (\d+) +\| `(\w+)`", ChannelWeightingEnv.__doc__)
    assert [name for _, name in rows] == list(CURVE_FEATURES)


def test_what_a_group_saves_is_a_share_of_the_network_that_is_cut():
    """Budgets of bytes, and later steps of a schedule, are shares of another network's cost."""
    env, _, budget = problem()
    limit = replace(budget.leading, dense_cost=4 * budget.leading.dense_cost, ratio=budget.leading.ratio / 4)
    plain, network, space, _ = fake_problem(OPTIMUM, ratio=0.5)
    other = ChannelWeightingEnv(
        network, space, replace(budget, limits=(limit,)), plain._reward, FEATURES, CURVES
    )
    np.testing.assert_array_equal(other.observations, env.observations)


def test_zero_actions_give_the_greedy_allocation():
    env, space, budget = problem()
    info = play(env, [0.0] * 4)[4]
    assert info["evaluation"].widths == greedy_widths(space, budget, CURVES)
    assert info["actions"] == (0.0, 0.0, 0.0, 0.0)


@quick
@given(st.lists(st.floats(-1.5, 1.5), min_size=4, max_size=4), st.sampled_from([0.3, 0.5, 0.8]))
def test_any_actions_meet_the_budget_and_repeat(actions, ratio):
    env, _, budget = problem(ratio)
    info = play(env, actions)[4]
    assert budget.fits(info["evaluation"].widths)
    assert np.mean(info["actions"]) == pytest.approx(0.0, abs=1e-7)
    assert np.abs(info["actions"]).max() <= 1.0
    assert centred(info["actions"]) == pytest.approx(info["actions"], abs=1e-12)


@quick
@given(st.lists(st.floats(-0.4, 0.4), min_size=4, max_size=4), st.floats(-0.5, 0.5))
def test_a_common_shift_changes_nothing(actions, shift):
    env, _, _ = problem()
    one = play(env, actions)[4]["actions"]
    other = play(env, [action + shift for action in actions])[4]["actions"]
    assert one == pytest.approx(other, abs=1e-6)


def test_a_larger_weight_never_narrows_its_group():
    env, _, _ = problem()
    widths = [play(env, [0.0, level, 0.0, 0.0])[4]["evaluation"].widths[1] for level in (-1, -0.5, 0, 0.5, 1)]
    assert all(one <= other for one, other in pairwise(widths))
    assert widths[0] < widths[-1]


def test_weights_and_actions_are_inverse():
    weights = np.array([0.5, 1.0, 2.0, 4.0])
    again = weights_of(actions_of(weights))
    assert again / again[0] == pytest.approx(weights / weights[0])


def test_only_the_last_step_has_a_reward():
    env, _, _ = problem()
    env.reset()
    rewards = [env.step(np.zeros(1, np.float32))[1] for _ in range(4)]
    assert rewards[:3] == [0.0, 0.0, 0.0]
    assert rewards[3] < 0
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(1, np.float32))


def test_observations_tell_the_groups_apart_and_depend_on_no_action():
    env, _, _ = problem()

    def observed(level):
        first = env.reset()[0]
        return np.stack([first, *(env.step(np.array([level], np.float32))[0] for _ in range(3))])

    assert (observed(-1.0) == observed(1.0)).all()
    assert len({row.tobytes() for row in observed(0.0)}) == 4


def test_a_budget_that_is_not_enforced_is_refused():
    with pytest.raises(SettingError, match="need an enforced budget"):
        problem(reward=get_reward("accuracy_macs"))
