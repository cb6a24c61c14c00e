"""A search from the best of several guides: each is evaluated once, the agent starts from the best."""

from functools import partial

import pytest

from agents import EvolutionSettings, evolution_search, search_from_best
from tests.fakes import fake_problem

OPTIMUM = (0.9, 0.3, 0.9, 0.3, 0.9, 0.3)
BAD, GOOD, FAIR = (0.2,) * 6, (0.8, 0.4, 0.8, 0.4, 0.8, 0.4), (0.5,) * 6


def evolve(guide):
    return partial(evolution_search, settings=EvolutionSettings(guide=guide, mutations=0.01))


def search(guides, episodes=12, envs=1, agent=evolve):
    problems = [fake_problem(OPTIMUM, ratio=0.6, round_to=1)[0] for _ in range(envs)]
    seen = []
    return search_from_best(problems, episodes, 0, seen.append, guides=guides, agent=agent), seen


@pytest.mark.parametrize("envs", [1, 2])
def test_every_guide_is_evaluated_and_the_agent_starts_from_the_best(envs):
    begun = []

    def agent(guide):
        begun.append(guide)
        return evolve(guide)

    result, seen = search([BAD, GOOD, FAIR], envs=envs, agent=agent)
    assert begun == [GOOD]
    assert [episode.requested for episode in seen[:4]] == [pytest.approx(g) for g in (BAD, GOOD, FAIR, GOOD)]
    assert [episode.index for episode in seen] == list(range(12))
    assert [episode.phase for episode in seen[:4]] == ["warmup"] * 3 + ["search"]
    assert (result.agent, result.episodes) == ("evolution", 12)
    assert result.best.value == max(episode.value for episode in seen)
    assert result.best == seen[result.best.index]


def test_the_first_of_equal_episodes_wins_and_the_agent_always_has_one():
    result, seen = search([GOOD, BAD, FAIR], episodes=2)
    assert [episode.requested for episode in seen] == [pytest.approx(GOOD)] * 2
    assert result.best == seen[0]
    (only,) = search([GOOD, BAD], episodes=1)[1]
    assert only.requested == pytest.approx(GOOD)
