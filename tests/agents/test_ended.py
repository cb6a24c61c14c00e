"""Every search can be ended by the callback of its episodes."""

from dataclasses import replace

import pytest

from agents import SearchEnded, run_search
from tests.golden import TRACES
from tests.params import slow_but

OFTEN = ("ddpg_two_envs", "evolution", "random")


def ended(name, after):
    """Return the episodes of a toy search that is ended after some of them, and its result."""
    seen = []

    def on_episode(episode):
        seen.append(episode)
        if len(seen) == after:
            raise SearchEnded

    result = run_search(TRACES[name], on_episode, name=name)
    return seen, result


@pytest.mark.parametrize(
    "name",
    slow_but(OFTEN, TRACES),
)
def test_a_search_is_ended_after_any_episode_with_the_result_so_far(name):
    whole = []
    TRACES[name](whole.append)
    last = next(episode.index for episode in whole if episode.eligible) + 1
    for after in {last, last + 2, len(whole) - 1}:
        seen, result = ended(name, after)
        assert [(e.index, e.requested, e.value) for e in seen] == [
            (e.index, e.requested, e.value) for e in whole[:after]
        ]
        assert result.episodes == after
        assert result.best == max((e for e in seen if e.eligible), key=lambda episode: episode.value)


@pytest.mark.parametrize("name", ["ddpg", "ddpg_two_envs"])
def test_an_agent_that_learns_can_be_saved_when_it_was_ended(name, tmp_path):
    _, result = ended(name, 7)
    result.save(tmp_path / "agent.zip")
    assert (tmp_path / "agent.zip").stat().st_size > 0


def test_a_search_that_is_ended_before_an_episode_that_may_win_has_no_result():
    def at_once(episode):
        raise SearchEnded

    def relaxed_first(on_episode):
        def relax(episode):
            on_episode(replace(episode, phase="relaxed"))

        return TRACES["random"](relax)

    with pytest.raises(SearchEnded):
        run_search(relaxed_first, at_once, name="random")


def test_a_search_that_is_not_ended_keeps_its_own_result():
    _, result = ended("random", 1000)
    assert (result.agent, result.episodes) == ("random", 10)
