"""Concurrent episodes: their order, their threads and their errors."""

import threading

import numpy as np
import pytest

from agents import Episode
from agents.protocol import batches, better, concurrently, rollouts, streams
from tests.agents.helpers import Pausing, problems


def constant(action):
    return lambda _observation, _step: action


def test_rollouts_come_back_in_order_whichever_ends_first():
    envs = [Pausing(env, [pause]) for env, pause in zip(problems(3)[0], (0.01, 0.005, 0.0), strict=True)]
    episodes = rollouts(envs, [constant(a) for a in (0.3, 0.5, 0.7)], 4, "search")
    assert [e.index for e in episodes] == [4, 5, 6]
    assert [e.requested[0] for e in episodes] == pytest.approx([0.3, 0.5, 0.7])
    assert {e.phase for e in episodes} == {"search"}
    assert len({thread for env in envs for thread in env.threads}) == 3


def test_rollouts_really_overlap():
    barrier = threading.Barrier(2, timeout=5)

    def meet(_observation, _step):
        barrier.wait()
        return 0.5

    assert len(rollouts(problems(2)[0], [meet, meet], 0, "search")) == 2


def test_one_rollout_stays_in_the_calling_thread():
    env = Pausing(problems(1)[0][0], [0.0])
    rollouts([env], [constant(0.5)], 0, "search")
    assert set(env.threads) == {threading.get_ident()}


def test_fewer_policies_than_environments_leave_the_last_ones_alone():
    envs, networks = problems(3)
    assert len(rollouts(envs, [constant(0.5)] * 2, 0, "search")) == 2
    assert [network.calls for network in networks] == [1, 1, 0]
    with pytest.raises(AssertionError, match="4 policies for 3 environments"):
        rollouts(envs, [constant(0.5)] * 4, 0, "search")


def test_an_error_in_a_thread_is_raised_after_the_others_have_ended():
    envs, networks = problems(3)

    def broken(_observation, _step):
        raise ValueError("no such action")

    with pytest.raises(ValueError, match="no such action"):
        rollouts(envs, [constant(0.5), broken, constant(0.5)], 0, "search")
    assert [network.calls for network in networks] == [1, 0, 1]


def test_the_first_of_several_exceptions_is_raised():
    def fail(name):
        def call():
            raise ValueError(name)

        return call

    with pytest.raises(ValueError, match="second"):
        concurrently([lambda: None, fail("second"), fail("third")])


def test_batches_cover_every_index_once():
    assert list(batches(7, 3)) == [range(3), range(3, 6), range(6, 7)]
    assert list(batches(2, 3)) == [range(2)]
    assert list(batches(0, 3)) == []


def test_streams_are_the_generator_itself_or_independent_ones():
    generator = np.random.default_rng(0)
    assert streams(generator, 1) == [generator]
    first, second = (stream.random(4).tolist() for stream in streams(generator, 2))
    assert first != second
    again = streams(np.random.default_rng(0), 2)
    assert [stream.random(4).tolist() for stream in again] == [first, second]


def test_an_episode_over_the_budget_on_purpose_is_never_the_best():
    kept, relaxed = Episode(0, "search", (), (), -1.0, {}), Episode(1, "relaxed", (), (), 0.0, {})
    assert (kept.eligible, relaxed.eligible) == (True, False)
    assert better(None, relaxed) is None
    assert better(kept, relaxed) is kept
    assert better(better(None, relaxed), kept) is kept


def test_the_earlier_of_two_equal_episodes_is_the_best():
    first, second = (Episode(i, "search", (), (), -1.0, {}) for i in range(2))
    assert better(first, second) is first
    assert better(None, second) is second
    assert better(first, Episode(2, "search", (), (), -0.5, {})).value == pytest.approx(-0.5)
