"""The environment's contract: its documentation, Gymnasium's checker, budget, rewards, determinism."""

import doctest
import math
import re
import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import DDPG, TD3

import envs  # registers the environment
from amc.budget.budget import FITS, rounded_up
from amc.errors import AmcError, SettingError
from envs import FEATURES, REWARDS, ChannelPruningEnv, Reward, channel_pruning, get_reward
from tests.fakes import fake_problem

ratios = st.lists(st.floats(0, 1), min_size=4, max_size=4)


def play(env, actions):
    observation, _ = env.reset()
    steps = []
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(np.array([action], np.float32))
        steps.append((observation, reward, terminated, truncated, info))
    return steps


def test_passes_gymnasiums_checker_with_warnings_as_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(envs.ENV_ID, factory=lambda: fake_problem()[0])
        check_env(env.unwrapped, skip_render_check=True)
    assert env.unwrapped.episode_length == 4


def test_the_example_of_the_documentation_runs():
    results = doctest.testmod(channel_pruning)
    assert results.attempted > 10
    assert results.failed == 0


def test_the_documentation_lists_every_feature():
    rows = re.findall(r"\| (\d+) +\| `(\w+)`", ChannelPruningEnv.__doc__)
    assert [(int(place), name) for place, name in rows] == list(enumerate(FEATURES))


def test_an_action_that_is_no_number_is_refused_and_infinity_is_clipped():
    env = fake_problem()[0]
    with pytest.raises(
        AmcError, match=r"^the action for group 'layer1' is NaN; expected .* from 0 to 1; .*$"
    ):
        play(env, [0.5, math.nan])
    assert [step[4]["requested"] for step in play(env, [math.inf, -math.inf])] == [1.0, 0.0]


@pytest.mark.parametrize("algorithm", [DDPG, TD3])
def test_agents_of_stable_baselines3_train_on_it(algorithm):
    env, network, _, _ = fake_problem()
    wrapped = gym.make(envs.ENV_ID, factory=lambda: env)
    model = algorithm(
        "MlpPolicy",
        wrapped,
        learning_starts=8,
        batch_size=4,
        policy_kwargs={"net_arch": [8]},
        seed=0,
        device="cpu",
    )
    before = model.predict(env.reset()[0], deterministic=True)[0]
    model.learn(total_timesteps=6 * env.episode_length)
    after = model.predict(env.reset()[0], deterministic=True)[0]
    assert network.calls == 6
    assert env.action_space.contains(after)
    assert after != before


def test_the_episode_has_one_step_a_group_and_a_reward_at_its_end_only():
    env, network, _, _ = fake_problem()
    steps = play(env, [0.5] * 4)
    widths = [round(40 * ratio) for ratio in steps[-1][4]["ratios"]]
    assert [terminated for _, _, terminated, _, _ in steps] == [False, False, False, True]
    assert not any(truncated for *_, truncated, _ in steps)
    assert [reward for _, reward, *_ in steps[:3]] == [0.0] * 3
    assert steps[-1][1] == pytest.approx(-network.evaluate(widths).loss)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.array([0.5], np.float32))


@settings(deadline=None, max_examples=100)
@given(actions=ratios, ratio=st.floats(0.25, 1.0), fit=st.sampled_from(FITS))
def test_any_actions_meet_the_budget_and_observations_stay_in_the_space(actions, ratio, fit):
    env, network, space, budget = fake_problem(ratio=ratio, fit=fit)
    steps = play(env, actions)
    last = steps[-1][4]
    widths = last["evaluation"].widths
    assert network.macs(widths) <= budget.leading.largest
    assert all(width in choices for width, choices in zip(widths, space.choices, strict=True))
    assert last["ratios"] == tuple(width / 40 for width in widths)
    assert all(env.observation_space.contains(step[0]) for step in steps)
    if fit == "cut":
        assert widths == tuple(step[4]["width"] for step in steps)
        assert last["macs_ratio"] == pytest.approx(network.macs(widths) / network.macs(space.dense))


def test_info_has_the_request_and_the_cut():
    env, _, space, _ = fake_problem(ratio=0.3, fit="cut")
    infos = [step[4] for step in play(env, [1.0] * 4)]
    assert all(info["requested"] == 1.0 for info in infos)
    assert any(info["cut"] > 0 for info in infos)
    for info, dense in zip(infos, space.dense, strict=True):
        assert info["width"] + info["cut"] == dense
        assert info["executed"] == info["width"] / dense
    assert infos[-1]["ratios"] == tuple(info["executed"] for info in infos)


def test_scaled_requests_favour_no_place_in_the_network():
    """AMC's cut gives the first groups all they ask for, and the last ones the rest."""
    scaled, cut = (
        play(fake_problem(ratio=0.3, fit=fit)[0], [1.0] * 4)[-1][4]["ratios"] for fit in ("scale", "cut")
    )
    assert max(scaled) - min(scaled) <= 0.1
    assert cut[0] == 1.0
    assert cut[-1] == 0.2


def test_the_unused_part_of_the_budget_is_distributed():
    env, network, space, budget = fake_problem()
    widths = play(env, [0.2, 0.1, 0.2, 0.1])[-1][4]["evaluation"].widths
    for group, width in enumerate(widths):
        larger = [choice for choice in space.choices[group] if choice > width]
        if larger:
            assert network.macs((*widths[:group], larger[0], *widths[group + 1 :])) > budget.leading.largest


def test_twin_rollouts_are_equal():
    first, second = (play(fake_problem()[0], [0.3, 0.9, 0.2, 0.7]) for _ in range(2))
    for one, two in zip(first, second, strict=True):
        assert np.array_equal(one[0], two[0])
        assert one[1:4] == two[1:4]


def test_an_infeasible_budget_fails_before_the_search_with_the_reachable_minimum():
    env, network, space, _ = fake_problem()
    reachable = network.macs(space.minimum) / network.macs(space.dense)
    with pytest.raises(AmcError, match=rounded_up(reachable)):
        fake_problem(ratio=reachable * 0.99)
    assert env.episode_length == 4


@pytest.mark.parametrize("name", ["accuracy_macs", "accuracy_params"])
def test_accuracy_guaranteed_rewards_have_no_hard_budget(name):
    env, network, space, _ = fake_problem(ratio=0.3, reward=get_reward(name))
    steps = play(env, [1.0] * 4)
    assert tuple(step[4]["width"] for step in steps) == space.dense
    loss = network.evaluate(space.dense).loss
    assert steps[-1][1] == pytest.approx(-loss * math.log(network.macs(space.dense)))


def test_observation_by_hand():
    env, network, space, _ = fake_problem(ratio=1.0)
    observation, _ = env.reset()
    assert len(observation) == len(FEATURES) == 11
    first = dict(zip(FEATURES, observation, strict=True))
    assert (first["t"], first["reduced"], first["previous"]) == (0.0, 0.0, 1.0)
    assert first["c"] == 0.0  # 3 inputs are the fewest
    step = play(env, [0.5])[0]
    second = dict(zip(FEATURES, step[0], strict=True))
    dense = network.macs(space.dense)
    assert second["t"] == pytest.approx(1 / 3)
    assert second["previous"] == pytest.approx(0.5)
    assert second["reduced"] == pytest.approx(1 - network.macs((20, 40, 40, 40)) / dense)
    assert second["rest"] == pytest.approx(50 / dense)


MINE = Reward("mine", lambda evaluation: 1.0, enforces_budget=False, needs_logits=True)


def test_a_reward_by_its_path_keeps_what_it_says_of_itself():
    found = get_reward(f"{__name__}.MINE")
    assert (found.enforces_budget, found.needs_logits, found.score) == (False, True, MINE.score)


def test_agreement_reward_and_dotted_paths():
    evaluation = fake_problem()[1].evaluate((20, 20, 20, 20))
    assert get_reward("agreement").score(evaluation) == evaluation.agreement
    assert get_reward("envs.reward.accuracy").score(evaluation) == pytest.approx(-evaluation.loss)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("acuracy", "did you mean 'accuracy'"),
        ("envs.nowhere", "cannot be imported"),
        ("envs.FEATURES", "tuple"),
    ],
)
def test_bad_rewards_are_refused(name, message):
    with pytest.raises(SettingError, match=message):
        get_reward(name)


@pytest.mark.parametrize("name", REWARDS)
def test_rewards_of_a_network_without_logits_are_finite_or_refused(name):
    evaluation = replace(fake_problem()[1].evaluate((20, 20, 20, 20)), top1=None, loss=None)
    reward = get_reward(name)
    if reward.needs_logits:
        with pytest.raises(AmcError, match=f"reward '{name}' needs an accuracy, but"):
            reward(evaluation)
    else:
        assert math.isfinite(reward(evaluation))


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda evaluation: evaluation.top1 / 0, "fails: ZeroDivisionError"),
        (lambda _: math.nan, "returns nan; expected a finite number"),
        (lambda _: None, "returns None; expected a finite number"),
    ],
)
def test_a_score_that_fails_or_is_not_finite_is_refused(score, message):
    with pytest.raises(AmcError, match=f"reward 'mine' {message}"):
        Reward("mine", score)(fake_problem()[1].evaluate((20, 20, 20, 20)))
