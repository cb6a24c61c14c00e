"""Allocations without a search: within the budget, the best exchange at every step, one group at a time."""

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from amc.budget.allocation import (
    even_errors,
    one_group_smaller,
    ramp_widths,
    ranked_widths,
    shrink_greedily,
    shrink_group,
)
from amc.budget.budget import Limit, make_budget
from amc.budget.widths import width_space


def cost(widths):
    return 3 * widths[0] + widths[1]


def at_most(largest, cost=cost):
    """Return a limit in the unit of the cost."""
    return [Limit("macs", cost, 1.0, largest)]


def problem(ratio):
    space = width_space(["a", "b"], [4, 4], round_to=1, min_preserve_ratio=0.25)
    return space, make_budget("macs", ratio, cost, space.dense)


ERRORS = {"a": (math.inf, 9.0, 6.0, 3.0, 0.0), "b": (math.inf, 2.5, 1.0, 0.4, 0.0)}


def test_one_group_shrinks_no_further_than_it_must():
    space, _ = problem(1.0)
    assert shrink_group(space, at_most(13), (4, 4), 0) == (3, 4)
    assert shrink_group(space, at_most(13), (4, 4), 1) == (4, 1)
    assert shrink_group(space, at_most(12), (4, 4), 1) is None
    assert shrink_group(space, at_most(12), (4, 1), 1) is None  # it is at its smallest already
    assert shrink_group(space, at_most(100), (4, 4), 0) == (3, 4)  # a step is taken in any case


def test_a_width_of_another_space_shrinks_to_an_allowed_one():
    space = width_space(["a", "b"], [8, 8], round_to=4)
    assert shrink_greedily(space, at_most(20), (7, 5), even_errors(space)) == (4, 5)
    assert shrink_group(space, at_most(25), (7, 5), 1) == (7, 4)


def test_networks_with_one_group_smaller_are_sorted_by_their_error():
    space, _ = problem(1.0)
    assert one_group_smaller(space, at_most(14), (4, 4), ERRORS) == [(4, 2), (3, 4)]  # 1.0 and 3.0 lost
    assert one_group_smaller(space, at_most(13), (4, 4), ERRORS) == [(4, 1), (3, 4)]  # 2.5 and 3.0
    assert one_group_smaller(space, at_most(14), (4, 4), {}) == [
        (3, 4),
        (4, 2),
    ]  # a quarter or half of a group


def test_networks_within_the_limit_stay_as_they_are():
    assert one_group_smaller(problem(1.0)[0], at_most(12), (3, 3), ERRORS) == [(3, 3)]


def test_several_groups_shrink_if_one_is_not_enough():
    space, _ = problem(1.0)
    found = one_group_smaller(space, at_most(6), (4, 4), ERRORS)
    assert found == [shrink_greedily(space, at_most(6), (4, 4), ERRORS)]
    assert cost(found[0]) <= 6


def test_even_errors_rise_ever_faster():
    space = width_space(["a", "b"], [8, 6], round_to=1, min_preserve_ratio=0.2)
    for name, curve in even_errors(space).items():
        assert len(curve) == space.dense[space.names.index(name)] + 1
        assert curve[-1] == 0
        rises = [left - right for left, right in pairwise(curve)]
        assert rises == sorted(rises, reverse=True)
        assert min(rises) > 0


@given(st.data(), st.floats(0.3, 1.0), st.booleans())
def test_every_network_meets_the_limit_and_is_nowhere_wider(data, share, known):
    dense = data.draw(st.lists(st.integers(4, 24), min_size=1, max_size=5))
    space = width_space([f"g{i}" for i in range(len(dense))], dense, round_to=2, min_preserve_ratio=0.2)

    def chain(widths):
        return sum(a * b for a, b in pairwise((3, *widths, 10)))

    widths = [data.draw(st.sampled_from(choices)) for choices in space.choices]
    limit = max(share * chain(space.dense), chain(space.minimum))
    found = one_group_smaller(space, at_most(limit, chain), widths, even_errors(space) if known else {})
    assert found
    for network in found:
        assert chain(network) <= limit
        assert all(width in choices for width, choices in zip(network, space.choices, strict=True))
        assert all(new <= old for new, old in zip(network, widths, strict=True))
        changed = [i for i, (new, old) in enumerate(zip(network, widths, strict=True)) if new != old]
        if len(changed) == 1 and len(found) > 1:
            (group,) = changed
            wider = space.choices[group][space.choices[group].index(network[group]) + 1]
            assert chain([*network[:group], wider, *network[group + 1 :]]) > limit or wider == widths[group]


def line(ratio, groups=5, width=10):
    names = [str(group) for group in range(groups)]
    space = width_space(names, [width] * groups, round_to=1, min_preserve_ratio=0.1)
    return space, make_budget("macs", ratio, sum, space.dense)


def test_the_shallow_and_the_deep_heuristic_are_mirror_images_on_a_line():
    assert ramp_widths(*line(0.5), shallow=True) == (1, 2, 5, 7, 10)  # a quarter more a group
    assert ramp_widths(*line(0.5), shallow=False) == (10, 7, 5, 2, 1)
    assert ramp_widths(*line(0.9), shallow=True) == (6, 9, 10, 10, 10)  # moved up and cut at 1
    assert ramp_widths(*line(1.0), shallow=True) == (10,) * 5


def test_a_single_group_has_no_depth():
    for shallow in (True, False):
        assert ramp_widths(*line(0.6, groups=1), shallow=shallow) == (6,)


def test_a_ranking_keeps_the_best_of_all_channels():
    space, budget = line(0.5, groups=2, width=4)
    scores = {"0": (9.0, 1.0, 8.0, 7.0), "1": (2.0, 6.0, 3.0, 0.5)}
    assert ranked_widths(space, budget, scores) == (3, 1)  # 9, 8, 7 and 6
    assert ranked_widths(space, budget, {"0": scores["1"], "1": scores["0"]}) == (1, 3)


def test_equal_scores_of_all_channels_still_meet_the_budget():
    space, budget = line(0.5, groups=2, width=4)
    assert sum(ranked_widths(space, budget, {"0": (1.0,) * 4, "1": (1.0,) * 4})) <= budget.leading.largest


@given(
    st.lists(st.lists(st.floats(0, 1), min_size=6, max_size=6), min_size=3, max_size=3),
    st.floats(0.34, 1.0),
)
def test_rankings_and_ramps_meet_the_budget(scores, ratio):
    space = width_space(["a", "b", "c"], [6, 6, 6], round_to=2, min_preserve_ratio=0.3)
    budget = make_budget("macs", ratio, lambda w: w[0] * w[1] + w[1] * w[2], space.dense)
    for widths in (
        ranked_widths(space, budget, dict(zip(space.names, scores, strict=True))),
        ramp_widths(space, budget, shallow=True),
        ramp_widths(space, budget, shallow=False),
    ):
        assert budget.leading.cost(widths) <= budget.leading.largest
        assert all(width in choice for width, choice in zip(widths, space.choices, strict=True))
