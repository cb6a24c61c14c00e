"""TD3 in the place of DDPG: what its update adds, and that it learns."""

import zipfile

import numpy as np
import pytest
import torch

from agents import TD3Settings, random_search, td3_search
from agents.offpolicy.td3 import AMCTD3, build_td3, explore
from tests.agents.helpers import OPTIMUM, problems

LENGTH = len(OPTIMUM)
QUICK = TD3Settings(warmup_episodes=3, hidden=(16, 16), batch_size=8)


def search(settings=QUICK, episodes=8, seed=0):
    seen = []
    result = td3_search(problems(1)[0], episodes, seed, seen.append, settings=settings, episode_length=LENGTH)
    return result, seen


def learned(settings, episodes):
    model = build_td3(problems(1)[0], settings, 0, LENGTH)
    explore(model, episodes, lambda _: None, "td3", settings, LENGTH)
    return model


def weights(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def test_same_seed_same_search():
    assert search(seed=1)[1] == search(seed=1)[1]
    assert search(seed=1)[1] != search(seed=2)[1]
    assert search()[0].agent == "td3"


def test_the_actor_waits_for_the_critics():
    delayed = TD3Settings(warmup_episodes=1, hidden=(8,), batch_size=8, policy_delay=LENGTH + 1)
    fresh = build_td3(problems(1)[0], delayed, 0, LENGTH)
    once, twice = learned(delayed, 3), learned(delayed, 4)  # one episode is learned from, and two
    assert (once._n_updates, twice._n_updates) == (LENGTH, 2 * LENGTH)
    assert torch.equal(weights(once.actor), weights(fresh.actor))
    assert not torch.equal(weights(once.critic), weights(fresh.critic))
    assert not torch.equal(weights(twice.actor), weights(fresh.actor))


def test_one_critic_step_equals_the_hand_computed_one():
    """The smaller of two target critics, at the target's action moved by clipped noise."""
    settings = TD3Settings(hidden=(4,), batch_size=4, baseline_alpha=0.0, gamma=0.5, target_clip=0.05)
    model = build_td3(problems(1)[0], settings, 0, LENGTH)
    model.learn(1)  # prepares the logger
    rng = np.random.default_rng(0)
    for step in range(LENGTH):
        observation, following = rng.random((2, 1, 11), np.float32)
        action, done = rng.random((1, 1), np.float32), np.array([step == LENGTH - 1])
        info = [{"ratios": [0.4] * LENGTH}]
        model.replay_buffer.add(observation, following, action, np.array([-0.3], np.float32), done, info)
    data = model.replay_buffer.sample(4)
    torch.manual_seed(0)
    noise = torch.empty_like(data.actions).normal_(0, 0.2).clamp(-0.1, 0.1)
    with torch.no_grad():
        following = (model.actor_target(data.next_observations) + noise).clamp(-1, 1)
        both = torch.cat(model.critic_target(data.next_observations, following), dim=1)
        target = data.rewards + (1 - data.dones) * 0.5 * both.min(dim=1, keepdim=True).values
        values = model.critic(data.observations, data.actions)
        loss = sum(torch.nn.functional.mse_loss(value, target) for value in values)
    assert both.shape == (4, 2)
    model.replay_buffer.sample = lambda *_args, **_kwargs: data
    torch.manual_seed(0)
    model.train(1, 4)
    assert model.logger.name_to_value["train/critic_loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_a_guided_agent_starts_at_its_guide_and_explores_around_it():
    guide = (0.5, 0.4, 0.5, 0.4, 0.5, 0.4)
    _, seen = search(TD3Settings(warmup_episodes=3, hidden=(16,), guide=guide, sigma=0.05), episodes=3)
    assert seen[0].requested == pytest.approx(guide, abs=1e-5)
    for episode in seen[1:]:
        assert 0 < np.abs(np.array(episode.requested) - guide).max() < 0.3


def test_the_agent_is_saved_with_what_it_learned(tmp_path):
    for name in ("one", "other"):
        search()[0].save(tmp_path / f"{name}.zip")
    one, other = (AMCTD3.load(tmp_path / f"{name}.zip") for name in ("one", "other"))
    assert torch.equal(weights(one.policy), weights(other.policy))
    assert zipfile.is_zipfile(tmp_path / "one.zip")
    assert torch.equal(weights(one.actor), weights(learned(QUICK, 8).actor))


@pytest.mark.parametrize(
    "bad", [{"policy_delay": 0}, {"target_sigma": -1.0}, {"target_clip": -0.1}, {"tau": 0}]
)
def test_impossible_settings_are_named(bad):
    with pytest.raises(ValueError, match=f"agent.{next(iter(bad))} is"):
        TD3Settings(**bad)


def test_td3_beats_random_search_over_fixed_seeds():
    settings = TD3Settings(warmup_episodes=20, hidden=(64, 64), actor_lr=1e-3)
    won = [search(settings, 100, seed)[0].best.value for seed in range(3)]
    drawn = [random_search(problems(1)[0], 100, seed, lambda _: None).best.value for seed in range(3)]
    assert np.mean(won) > np.mean(drawn)
