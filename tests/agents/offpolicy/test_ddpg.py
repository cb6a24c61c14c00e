"""DDPG: its updates by hand, its schedule, its guide, and that it learns."""

import tempfile
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from agents import DDPGSettings, ddpg_search, random_search
from agents.offpolicy import ddpg
from agents.offpolicy.ddpg import AMCDDPG, build_ddpg
from tests.agents.helpers import updates
from tests.fakes import fake_problem

QUICK = DDPGSettings(warmup_episodes=3, hidden=(16, 16), batch_size=8)


def search(settings=QUICK, episodes=6, seed=0, optimum=(0.9, 0.3, 0.8, 0.4), ratio=0.6, fit="scale"):
    env, _, _, _ = fake_problem(optimum, ratio=ratio, fit=fit)
    seen = []
    result = ddpg_search([env], episodes, seed, seen.append, settings=settings, episode_length=4)
    return result, seen


def test_one_critic_step_equals_the_hand_computed_one():
    env, _, _, _ = fake_problem()
    settings = DDPGSettings(hidden=(4,), batch_size=4, baseline_alpha=0.0, gamma=0.5)
    model = build_ddpg([env], settings, seed=0, episode_length=4)
    model.learn(1)  # prepares the logger
    batch = model.replay_buffer
    rng = np.random.default_rng(0)
    for step in range(4):
        observation, following = rng.random((2, 1, 11), np.float32)
        action, done = rng.random((1, 1), np.float32), np.array([step == 3])
        batch.add(
            observation, following, action, np.array([-0.3], np.float32), done, [{"actions": [0.4] * 4}]
        )
    for group in model.critic.optimizer.param_groups:
        group["lr"] = 0.0
    data = batch.sample(4)
    with torch.no_grad():
        following = model.actor_target(data.next_observations).clamp(-1, 1)
        target = (
            data.rewards + (1 - data.dones) * 0.5 * model.critic_target(data.next_observations, following)[0]
        )
        loss = torch.nn.functional.mse_loss(model.critic(data.observations, data.actions)[0], target)
    model.replay_buffer.sample = lambda *_args, **_kwargs: data
    model.train(1, 4)
    assert model.logger.name_to_value["train/critic_loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_actor_and_critic_have_rates_of_their_own():
    env, _, _, _ = fake_problem()
    settings = replace(QUICK, actor_lr=3e-4, critic_lr=2e-3)
    model = build_ddpg([env], settings, seed=0, episode_length=4)
    model.learn(total_timesteps=4 * 4)
    assert updates(model) == 4
    assert model.actor.optimizer.param_groups[0]["lr"] == 3e-4
    assert model.critic.optimizer.param_groups[0]["lr"] == 2e-3


def test_a_search_leaves_nothing_in_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    search()
    assert list(tmp_path.iterdir()) == []


def test_warm_up_is_counted_in_episodes_and_learning_starts_after_it():
    result, seen = search(episodes=6)
    assert [e.phase for e in seen] == ["warmup"] * 3 + ["search"] * 3
    assert result.episodes == 6
    assert all(len(e.requested) == 4 for e in seen)


def test_gradient_steps_equal_environment_steps_after_warm_up():
    env, _, _, _ = fake_problem()
    model = build_ddpg([env], QUICK, seed=0, episode_length=4)
    model.learn(total_timesteps=4 * 5)
    assert updates(model) == 4 * (5 - 3)


def test_warm_up_actions_are_uniform():
    _, seen = search(DDPGSettings(warmup_episodes=100, hidden=(4,)), episodes=100)
    requested = np.array([ratio for e in seen for ratio in e.requested])
    histogram, _ = np.histogram(requested, bins=4, range=(0, 1))
    assert histogram.min() > 60  # 100 expected in each quarter


def test_same_seed_same_search():
    first, second, other = search(seed=1)[1], search(seed=1)[1], search(seed=2)[1]
    assert first == second
    assert first != other


GUIDED = DDPGSettings(
    warmup_episodes=3, hidden=(16, 16), batch_size=8, guide=(0.8, 0.3, 0.7, 0.4), sigma=0.05
)


def test_a_guided_agent_starts_at_its_guide_and_explores_around_it():
    _, seen = search(GUIDED, ratio=1.0, fit="cut")
    assert seen[0].requested == pytest.approx(GUIDED.guide, abs=1e-5)
    for episode in seen[1:3]:
        assert np.abs(np.array(episode.requested) - GUIDED.guide).max() < 0.3


@pytest.mark.parametrize(("steps", "share", "expected"), [(20, 0.3, 0.3), (20, 0.01, 0.1), (4, 0.01, 0.5)])
def test_a_share_of_the_steps_explores_two_an_episode_at_least(steps, share, expected):
    settings = replace(GUIDED, guide=(0.6,) * steps, explore_share=share, warmup_episodes=50)
    env, _, _, _ = fake_problem((0.5,) * steps, ratio=1.0, fit="cut")
    seen = []
    ddpg_search([env], 30, 0, seen.append, settings=settings, episode_length=steps)
    moved = [abs(action - 0.6) > 1e-4 for episode in seen[1:] for action in episode.requested]
    assert np.mean(moved) == pytest.approx(expected, rel=0.35)


def test_a_moved_guide_moves_the_actor():
    env, _, _, _ = fake_problem()
    model = build_ddpg([env], GUIDED, seed=0, episode_length=4)
    observation, _ = env.reset()
    assert model.predict(observation, deterministic=True)[0] == pytest.approx([0.8], abs=1e-5)
    model.policy.move_guide((0.2, 0.6, 0.5, 0.5))
    assert model.predict(observation, deterministic=True)[0] == pytest.approx([0.2], abs=1e-5)
    observation = env.step(np.array([0.2]))[0]
    assert model.predict(observation, deterministic=True)[0] == pytest.approx([0.6], abs=1e-5)


def test_a_moved_guide_resets_the_learned_offset():
    env, _, _, _ = fake_problem()
    model = build_ddpg([env], GUIDED, seed=0, episode_length=4)
    with torch.no_grad():
        model.policy.actor.mu[-2].bias += 1.0
    observation, _ = env.reset()
    assert model.predict(observation, deterministic=True)[0] > 0.9
    model.policy.move_guide(GUIDED.guide)
    assert model.predict(observation, deterministic=True)[0] == pytest.approx([0.8], abs=1e-5)


def test_step_features_give_actor_and_critic_the_step():
    env, _, _, _ = fake_problem()
    model = build_ddpg([env], replace(GUIDED, step_features=True), seed=0, episode_length=4)
    observation, _ = env.reset()
    for step in range(4):
        for network in (model.policy.actor, model.policy.critic):
            features = network.features_extractor(torch.from_numpy(observation)[None])[0]
            assert features[: len(observation)].tolist() == observation.tolist()
            assert features[len(observation) :].tolist() == [float(place == step) for place in range(4)]
        observation = env.step(np.array([0.5]))[0]


def test_following_the_best_changes_the_search_once_a_better_episode_is_found():
    settings = replace(GUIDED, guide=(0.3, 0.9, 0.3, 0.9), warmup_episodes=10, sigma=0.3)
    stays = search(settings, episodes=10, ratio=1.0, fit="cut")[1]
    moves = search(replace(settings, follow_best=True), episodes=10, ratio=1.0, fit="cut")[1]
    better = next(e.index for e in stays if e.value > stays[0].value)
    assert moves[: better + 1] == stays[: better + 1]
    assert moves[better + 1] != stays[better + 1]


def test_seeking_new_networks_meets_more_of_them():
    settings = replace(GUIDED, sigma=0.02, explore_share=0.5, warmup_episodes=20)
    plain = search(settings, episodes=20, ratio=1.0, fit="cut")[1]
    seeking = search(replace(settings, seek_new=True), episodes=20, ratio=1.0, fit="cut")[1]
    counts = [len({episode.executed for episode in episodes}) for episodes in (plain, seeking)]
    assert counts[1] > 1.5 * counts[0]


def test_thousands_of_repeated_networks_in_a_row_are_no_overflow():
    assert ddpg._widened(2) == 1.5**2
    assert 1e6 < ddpg._widened(5000) < 1e20


@pytest.mark.parametrize("bad", [{"tau": 7.0}, {"batch_size": 0}, {"sigma": -1.0}, {"hidden": (0,)}])
def test_impossible_settings_are_named(bad):
    with pytest.raises(ValueError, match=f"agent.{next(iter(bad))} is"):
        DDPGSettings(**bad)


def test_the_saved_agent_has_its_trained_weights(tmp_path):
    def learned(seed):
        search(GUIDED, seed=seed)[0].save(tmp_path / "agent.zip")
        policy = AMCDDPG.load(tmp_path / "agent.zip").policy
        return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])

    assert torch.equal(learned(0), learned(0))
    assert not torch.equal(learned(0), learned(1))


def test_ddpg_beats_random_search_over_fixed_seeds():
    """A known optimum that the budget allows: on average the learner must get nearer to it."""
    optimum = (0.9, 0.3) * 6
    settings = DDPGSettings(warmup_episodes=15, hidden=(32, 32), actor_lr=1e-3, critic_lr=3e-3)

    def best(agent, seed):
        env, _, _, _ = fake_problem(optimum, ratio=0.6, round_to=1)
        return agent([env], 45, seed, lambda _: None).best.value

    learner = partial(ddpg_search, settings=settings, episode_length=len(optimum))
    learned, drawn = (np.mean([best(agent, seed) for seed in range(3)]) for agent in (learner, random_search))
    assert learned > drawn + 0.005
