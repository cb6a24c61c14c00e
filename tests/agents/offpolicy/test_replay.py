"""The replay buffer by hand: whole episodes, their returns, executed actions and the baseline."""

import numpy as np
import pytest
from gymnasium import spaces

from agents.offpolicy.replay import EpisodeReplayBuffer


def make_buffer(size=16, **options):
    box = spaces.Box(0, 1, (2,), np.float32)
    action = spaces.Box(0, 1, (1,), np.float32)
    return EpisodeReplayBuffer(size, box, action, device="cpu", handle_timeout_termination=False, **options)


def add_episodes(buffer, executed, values):
    """Add concurrent episodes; ``executed`` is (envs, steps), ``values`` (envs,)."""
    count, length = len(executed), len(executed[0])
    for step in range(length):
        last = step + 1 == length
        observation = np.full((count, 2), step, np.float32) + np.arange(0, 10 * count, 10)[:, None]
        buffer.add(
            observation,
            observation + 1,
            np.full((count, 1), 0.123, np.float32),
            np.array([value if last else 0.0 for value in values], np.float32),
            np.array([last] * count),
            [{"actions": row} for row in executed],
        )


def test_every_step_gets_the_final_reward_and_the_executed_action():
    buffer = make_buffer()
    add_episodes(buffer, [[0.25, 1.0, 0.5]], [-0.75])
    assert buffer.size() == 3
    assert buffer.rewards[:3, 0].tolist() == [-0.75] * 3
    assert buffer.actions[:3, 0, 0].tolist() == [-0.5, 1.0, 0.0]  # scaled from [0, 1] to [-1, 1]
    assert buffer.dones[:3, 0].tolist() == [0, 0, 1]


def test_the_requested_action_can_be_stored_as_in_the_official_code():
    buffer = make_buffer(store_executed=False)
    add_episodes(buffer, [[0.25, 1.0]], [-0.5])
    assert buffer.actions[:2, 0, 0] == pytest.approx([0.123, 0.123])


def test_an_unfinished_episode_is_not_stored():
    buffer = make_buffer()
    buffer.add(
        np.zeros((1, 2)),
        np.zeros((1, 2)),
        np.zeros((1, 1)),
        np.zeros(1),
        np.array([False]),
        [{"actions": [1.0]}],
    )
    assert buffer.size() == 0


def test_episodes_side_by_side_keep_their_own_returns_and_actions():
    buffer = make_buffer(n_envs=2)
    add_episodes(buffer, [[0.25, 1.0], [0.75, 0.5]], [-0.75, -0.25])
    assert buffer.size() == 2
    assert buffer.rewards[:2].tolist() == [[-0.75, -0.25]] * 2
    assert buffer.actions[:2, :, 0].tolist() == [[-0.5, 0.5], [1.0, 0.0]]
    assert buffer.observations[:2, :, 0].tolist() == [[0, 10], [1, 11]]
    assert buffer.next_observations[:2, :, 0].tolist() == [[1, 11], [2, 12]]
    assert buffer.dones[:2].tolist() == [[0, 0], [1, 1]]


def test_the_size_counts_the_transitions_of_all_environments():
    buffer = make_buffer(size=6, n_envs=2)
    for value in (-1.0, -2.0, -3.0):
        add_episodes(buffer, [[0.5, 0.5], [0.5, 0.5]], [value, value - 0.5])
    assert buffer.rewards.shape == (3, 2)
    assert sorted(buffer.rewards.flatten().tolist()) == [-3.5, -3.5, -3.0, -3.0, -2.5, -2.0]


def test_samples_of_both_environments_are_whole_transitions():
    buffer = make_buffer(n_envs=2, baseline_alpha=0.0)
    add_episodes(buffer, [[0.25, 1.0], [0.75, 0.5]], [-0.75, -0.25])
    np.random.seed(0)
    batch = buffer.sample(64)
    rows = zip(batch.observations[:, 0], batch.actions, batch.rewards, batch.dones, strict=True)
    drawn = {(o.item(), a.item(), r.item(), d.item()) for o, a, r, d in rows}
    assert drawn == {(0, -0.5, -0.75, 0), (1, 1, -0.75, 1), (10, 0.5, -0.25, 0), (11, 0, -0.25, 1)}


def test_the_baseline_is_the_moving_average_of_batch_means():
    buffer = make_buffer(baseline_alpha=0.5)
    add_episodes(buffer, [[0.5, 0.5]], [-1.0])
    assert buffer.sample(4).rewards.tolist() == [[0.0]] * 4  # the first batch starts the average
    add_episodes(buffer, [[0.5] * 6], [3.0])
    np.random.seed(0)
    first = buffer.baseline
    batch = buffer.sample(8)
    raw = batch.rewards + buffer.baseline
    assert buffer.baseline == pytest.approx(first + 0.5 * (raw.mean().item() - first))
    assert set(raw.flatten().round(decimals=4).tolist()) <= {-1.0, 3.0}


def test_standardised_rewards_have_mean_0_and_deviation_1_over_all_that_is_stored():
    buffer = make_buffer(standardise=True)
    returns = [-0.300, -0.301, -0.303, -0.310]
    for value in returns:
        add_episodes(buffer, [[0.5, 0.5]], [value])
    expected = sorted((value - np.mean(returns)) / np.std(returns) for value in returns)
    assert buffer.sample(500).rewards.unique().tolist() == pytest.approx(expected, abs=1e-3)


def test_equal_returns_are_standardised_to_zero():
    buffer = make_buffer(standardise=True)
    for _ in range(3):
        add_episodes(buffer, [[0.5, 0.5]], [-0.25])
    assert buffer.sample(50).rewards.abs().max() < 1
