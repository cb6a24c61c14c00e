"""Baselines have the interface of the learning agents."""

from agents import fixed_search, random_search
from tests.fakes import fake_problem


def test_random_search_is_seeded_and_returns_its_best_episode():
    def run(seed):
        episodes = []
        result = random_search([fake_problem()[0]], 12, seed, episodes.append)
        return result, episodes

    (result, episodes), (again, same), (_, other) = run(3), run(3), run(4)
    assert [e.index for e in episodes] == list(range(12))
    assert episodes == same
    assert episodes != other
    assert result.best == again.best == max(episodes, key=lambda e: e.value)
    assert result.episodes == 12


def test_a_fixed_allocation_is_carried_out():
    env, network, _, _ = fake_problem(ratio=1.0, fit="cut")
    seen = []
    result = fixed_search([env], seen.append, name="uniform", actions=[0.5, 0.6, 0.7, 0.8])
    assert result.best.executed == (0.5, 0.6, 0.7, 0.8)
    assert (result.agent, result.episodes, network.calls) == ("uniform", 1, 1)
    assert seen == [result.best]
