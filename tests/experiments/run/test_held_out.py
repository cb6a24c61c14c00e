"""When a search ends, and which network it keeps: by scores on images that it does not see."""

import pytest

from agents import Episode
from experiments.run.held_out import HeldOut


def watched(scores, patience=0, relaxed=()):
    """Watch one episode for each score; None is no improvement. Return the judge, and where it had enough."""
    judge = HeldOut(lambda episode: episode.info["score"], patience)
    for index, score in enumerate(scores):
        phase = "relaxed" if index in relaxed else "search"
        episode = Episode(index, phase, (), (), 0.0, {"score": score})
        assert judge.watch(episode, score is not None) == score
        if judge.enough:
            return judge, index
    return judge, None


def test_the_best_is_the_first_of_the_highest_scores():
    judge, end = watched([0.1, None, 0.3, 0.3, 0.2, None])
    assert end is None
    assert (judge.best.index, judge.best_score) == (2, 0.3)
    assert judge.scores == {0: 0.1, 2: 0.3, 3: 0.3, 4: 0.2}


@pytest.mark.parametrize(("patience", "end"), [(1, 1), (2, 4), (3, 5), (4, None), (0, None)])
def test_a_search_ends_when_the_unseen_score_has_not_risen_for_long_enough(patience, end):
    assert watched([0.1, None, 0.3, None, 0.2, 0.3], patience)[1] == end


def test_networks_over_the_budget_do_not_count():
    judge, end = watched([None, None, None, 0.1, None], patience=2, relaxed=(0, 1, 2))
    assert end is None
    assert judge.best.index == 3
