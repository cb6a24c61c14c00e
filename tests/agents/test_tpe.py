"""TPE: seeded, batched, learns from executed actions, and beats random search."""

import sys

import numpy as np
import optuna
import pytest

from agents import TPESettings, import_optuna, random_search, tpe_search
from tests.agents.helpers import OPTIMUM, problems, uneven

GUIDE = (0.5, 0.6, 0.5, 0.6, 0.5, 0.6)


def search(seed=0, episodes=12, envs=None, **settings):
    seen = []
    settings = TPESettings(**{"warmup_episodes": 4, **settings})
    envs = envs or problems(1)[0]
    result = tpe_search(envs, episodes, seed, seen.append, settings=settings, episode_length=len(OPTIMUM))
    return result, seen


@pytest.fixture
def studies(monkeypatch):
    """The studies that are made from now on."""
    made, create = [], optuna.create_study

    def create_and_keep(**options):
        made.append(create(**options))
        return made[-1]

    monkeypatch.setattr(optuna, "create_study", create_and_keep)
    return made


def test_same_seed_same_search():
    assert search(seed=1)[1] == search(seed=1)[1]
    assert search(seed=1)[1] != search(seed=2)[1]


def test_the_best_episode_is_the_result():
    result, seen = search()
    assert result.best == max(seen, key=lambda e: e.value)
    assert (result.agent, result.episodes, len(seen)) == ("tpe", 12, 12)


@pytest.mark.parametrize("warmup", [0, 3])
def test_warm_up_is_counted_in_episodes(warmup):
    _, seen = search(warmup_episodes=warmup, episodes=5)
    assert [e.phase for e in seen] == ["warmup"] * warmup + ["search"] * (5 - warmup)


def test_the_guide_is_carried_out_first():
    _, seen = search(guide=GUIDE)
    assert seen[0].requested == pytest.approx(GUIDE)
    assert [e.requested for e in seen[1:]] != [e.requested for e in search()[1][1:]]


def test_the_sampler_learns_from_executed_actions(studies):
    _, seen = search(guide=(1.0,) * 6)
    (study,) = studies
    completed = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    assert [tuple(t.params.values()) for t in completed] == [e.executed for e in seen]
    assert [t.value for t in completed] == [e.value for e in seen]
    assert seen[0].executed != seen[0].requested  # the budget has lowered it


def test_no_trial_of_a_batch_is_left_running(studies):
    search(envs=problems(3)[0], episodes=8)
    assert [t for t in studies[0].trials if not t.state.is_finished()] == []


@pytest.mark.parametrize(("count", "episodes"), [(2, 8), (3, 8), (3, 2)])
def test_batches_are_counted_and_reported_in_order(count, episodes):
    envs, networks = problems(count)
    result, seen = search(envs=envs, episodes=episodes, guide=GUIDE)
    assert [e.index for e in seen] == list(range(episodes))
    assert sum(network.calls for network in networks) == episodes == result.episodes
    assert len({e.requested for e in seen}) == episodes


def test_the_duration_of_a_step_does_not_change_the_search():
    (one, first), (other, second) = (search(envs=uneven(3, seed)) for seed in (0, 1))
    assert first == second
    assert one.best == other.best


def test_nothing_is_printed(capfd):
    search()
    assert capfd.readouterr() == ("", "")


def test_a_missing_optuna_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r"pip install 'amc-search\[tpe\]'"):
        import_optuna()


def test_impossible_settings_are_named():
    with pytest.raises(ValueError, match=r"agent.warmup_episodes is -1"):
        TPESettings(warmup_episodes=-1)


def test_tpe_beats_random_search_over_fixed_seeds():
    learned = [search(seed, 60, warmup_episodes=10)[0].best.value for seed in range(3)]
    drawn = [random_search(problems(1)[0], 60, seed, lambda _: None).best.value for seed in range(3)]
    assert np.mean(learned) > np.mean(drawn)
