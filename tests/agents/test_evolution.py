"""Evolution: counted, seeded, around its guide, and better than drawing at random."""

import numpy as np
import pytest

from agents import EvolutionSettings, evolution_search, random_search
from tests.fakes import fake_problem

OPTIMUM = (0.9, 0.3, 0.9, 0.3, 0.9, 0.3)


def search(seed=0, episodes=60, **settings):
    seen = []
    env, _, _, _ = fake_problem(OPTIMUM, ratio=0.6, round_to=1)
    result = evolution_search([env], episodes, seed, seen.append, settings=EvolutionSettings(**settings))
    return result, seen


def test_same_seed_same_search():
    assert search(seed=1)[1] == search(seed=1)[1]
    assert search(seed=1)[1] != search(seed=2)[1]


def test_the_guide_is_carried_out_first_and_few_actions_change_at_a_time():
    guide = (0.5, 0.5, 0.5, 0.5, 0.5, 0.5)
    _, seen = search(guide=guide, mutations=0.01)
    assert seen[0].requested == guide
    changed = np.sum(~np.isclose(seen[1].requested, seen[0].executed, atol=1e-6))  # float32 actions
    assert changed == 1


def test_without_a_guide_it_starts_from_random_episodes():
    _, seen = search(population=5)
    assert [e.phase for e in seen[:6]] == ["warmup"] * 5 + ["search"]


def test_it_beats_random_search():
    evolved = [search(seed)[0].best.value for seed in range(3)]
    drawn = []
    for seed in range(3):
        env, _, _, _ = fake_problem(OPTIMUM, ratio=0.6, round_to=1)
        drawn.append(random_search([env], 60, seed, lambda _: None).best.value)
    assert np.mean(evolved) > np.mean(drawn)


@pytest.mark.parametrize("bad", [{"population": 0}, {"mutations": 0.0}, {"sigma": -1.0}])
def test_impossible_settings_are_named(bad):
    with pytest.raises(ValueError, match=f"agent.{next(iter(bad))} is"):
        EvolutionSettings(**bad)
