"""SAC on AMC's episodes: its own exploration, the guide in one episode, and that it learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from agents import SACSettings, random_search, sac_search
from agents.offpolicy.learner import learn
from agents.offpolicy.sac import AMCSAC, build_sac
from tests.agents.helpers import OPTIMUM, problems

LENGTH = len(OPTIMUM)
QUICK = SACSettings(warmup_episodes=3, hidden=(16, 16), batch_size=8)
GUIDE = (0.5, 0.4, 0.5, 0.4, 0.5, 0.4)


def search(settings=QUICK, episodes=8, seed=0):
    seen = []
    result = sac_search(problems(1)[0], episodes, seed, seen.append, settings=settings, episode_length=LENGTH)
    return result, seen


def learned(settings, episodes):
    model = build_sac(problems(1)[0], settings, 0, LENGTH)
    learn(model, episodes, lambda _: None, name="sac", settings=settings, episode_length=LENGTH)
    return model


def test_same_seed_same_search():
    assert search(seed=1)[1] == search(seed=1)[1]
    assert search(seed=1)[1] != search(seed=2)[1]
    assert search()[0].agent == "sac"


def test_only_the_first_episode_is_the_guide():
    """The episodes of a uniform warm-up stay what they are without it."""
    guided, alone = search(replace(QUICK, guide=GUIDE))[1], search()[1]
    assert guided[0].requested == pytest.approx(GUIDE)
    assert guided[1:3] == alone[1:3]
    assert guided[4:] != alone[4:]  # it is learned from


def test_the_guide_is_stored_as_it_was_carried_out():
    model = learned(replace(QUICK, guide=GUIDE, store_executed=False), 2)
    assert model.replay_buffer.actions[:LENGTH, 0, 0] == pytest.approx(2.0 * np.array(GUIDE) - 1.0)


def test_warm_up_is_counted_in_episodes():
    assert [e.phase for e in search()[1]] == ["warmup"] * 3 + ["search"] * 5
    assert learned(QUICK, 8)._n_updates == (8 - 3 - 1) * LENGTH  # the last episode is not learned from


def test_the_weight_of_the_entropy_starts_as_set_and_is_learned():
    fresh = build_sac(problems(1)[0], replace(QUICK, entropy_weight=0.05), 0, LENGTH)
    assert fresh.log_ent_coef.exp().item() == pytest.approx(0.05)
    assert learned(QUICK, 8).log_ent_coef.exp().item() != pytest.approx(QUICK.entropy_weight, rel=1e-4)


def test_actor_and_critic_have_rates_of_their_own():
    model = learned(replace(QUICK, actor_lr=3e-4, critic_lr=2e-3), 6)
    assert model.actor.optimizer.param_groups[0]["lr"] == 3e-4
    assert model.critic.optimizer.param_groups[0]["lr"] == 2e-3
    assert model.ent_coef_optimizer.param_groups[0]["lr"] == 2e-3


def test_the_agent_is_saved_with_what_it_learned(tmp_path):
    search()[0].save(tmp_path / "agent.zip")
    saved, again = (
        AMCSAC.load(tmp_path / "agent.zip").policy.state_dict(),
        learned(QUICK, 8).policy.state_dict(),
    )
    assert all(torch.equal(saved[name], again[name]) for name in again)


@pytest.mark.parametrize("bad", [{"entropy_weight": 0.0}, {"target_entropy": 0.7}, {"replay_size": 0}])
def test_impossible_settings_are_named(bad):
    with pytest.raises(ValueError, match=f"agent.{next(iter(bad))} is"):
        SACSettings(**bad)


def test_sac_beats_random_search_over_fixed_seeds():
    settings = SACSettings(warmup_episodes=15, hidden=(64, 64), actor_lr=1e-3)
    won = [search(settings, 60, seed)[0].best.value for seed in range(3)]
    drawn = [random_search(problems(1)[0], 60, seed, lambda _: None).best.value for seed in range(3)]
    assert np.mean(won) > np.mean(drawn)
