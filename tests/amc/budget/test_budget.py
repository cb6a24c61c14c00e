import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amc.budget.allocation import uniform_widths
from amc.budget.budget import Limit, get_fit, make_budget
from amc.budget.widths import width_space
from amc.errors import AmcError

quick = settings(deadline=None, max_examples=60, database=None)


def chain_cost(widths):
    """Multiply-adds of 1x1 layers in a row, 3 inputs and 10 outputs."""
    chain = (3, *widths, 10)
    return sum(a * b for a, b in pairwise(chain))


def make_space(dense, round_to=8, min_preserve_ratio=0.2):
    names = [f"group{i}" for i in range(len(dense))]
    return width_space(names, dense, round_to=round_to, min_preserve_ratio=min_preserve_ratio)


@st.composite
def spaces(draw):
    dense = draw(st.lists(st.integers(1, 96), min_size=1, max_size=6))
    round_to = draw(st.integers(1, min(16, max(dense))))
    return make_space(dense, round_to, draw(st.floats(0.01, 1)))


@st.composite
def feasible(draw):
    """Return a space and a budget between its smallest and its dense cost."""
    space = draw(spaces())
    reachable = chain_cost(space.minimum) / chain_cost(space.dense)
    ratio = reachable + draw(st.floats(1e-9, 1)) * (1 - reachable)
    return space, make_budget("macs", min(ratio + 1e-12, 1), chain_cost, space.dense)


def test_width_choices_by_hand():
    space = make_space([32, 20, 8], round_to=8, min_preserve_ratio=0.3)
    assert space.choices == ((16, 24, 32), (8, 16, 20), (8,))
    assert space.minimum == (16, 8, 8)


def test_groups_narrower_than_the_rounding_stay_whole():
    space = make_space([32, 3, 1, 4], round_to=4, min_preserve_ratio=0.5)
    assert space.choices == ((16, 20, 24, 28, 32), (3,), (1,), (4,))
    budget = make_budget("macs", 0.5, chain_cost, space.dense, fit="scale")
    assert budget.scale(space, [0.1] * 4)[1:] == (3, 1, 4)


def test_an_exact_share_needs_no_further_channel():
    assert 0.3 * 10 > 3 - 1e-12
    assert make_space([10], round_to=1, min_preserve_ratio=0.3).minimum == (3,)
    assert make_space([20], round_to=8, min_preserve_ratio=0.9).choices == ((20,),)


@pytest.mark.parametrize(("share", "width"), [(0, 8), (0.37, 8), (0.375, 8), (0.38, 16), (0.9, 32), (1, 32)])
def test_nearest_by_hand(share, width):
    """Halfway between 8 and 16 of 32 is a share of 0.375, and the smaller wins."""
    space = make_space([32], round_to=8)
    assert space.choices == ((8, 16, 24, 32),)
    assert space.nearest(0, share) == width


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"round_to": 0}, "round_to is 0"),
        ({"round_to": 33}, "round_to is 33, larger than every channel group; expected at most 32"),
        ({"min_preserve_ratio": 0}, "min_preserve_ratio is 0"),
        ({"min_preserve_ratio": 1.1}, "min_preserve_ratio is 1.1"),
    ],
)
def test_impossible_spaces_are_refused(arguments, message):
    with pytest.raises(AmcError, match=message):
        make_space([32, 8], **arguments)


@pytest.fixture
def two_groups():
    """Choices (8, 16) and (8, 16, 24, 32); 48 + 512 + 320 = 880 dense, so half allows 440."""
    space = make_space([16, 32], round_to=8, min_preserve_ratio=0.25)
    assert space.choices == ((8, 16), (8, 16, 24, 32))
    return space


def test_cut_by_hand(two_groups):
    budget = make_budget("macs", 0.5, chain_cost, two_groups.dense)
    assert (budget.leading.dense_cost, budget.leading.largest) == (880, 440)
    assert budget.cut(two_groups, [], 16) == 16  # 48 + 16 * 8 + 80 = 256
    assert budget.cut(two_groups, [16], 32) == 8  # 48 + 26 w <= 440 for w <= 15
    assert budget.cut(two_groups, [8], 32) == 16  # 24 + 18 w <= 440 for w <= 23
    assert budget.cut(two_groups, [8], 8) == 8


def test_cut_lowers_an_early_group_for_the_later_ones(two_groups):
    budget = make_budget("macs", 0.25, chain_cost, two_groups.dense)
    assert budget.cut(two_groups, [], 16) == 8  # 256 > 220, but 24 + 64 + 80 = 168


def test_a_budget_that_is_not_enforced_is_always_feasible(two_groups):
    budget = make_budget("macs", 0.01, chain_cost, two_groups.dense, enforced=False)
    assert budget.leading.cost(two_groups.minimum) > budget.leading.largest
    budget.check_feasible(two_groups)
    with pytest.raises(AmcError, match="smallest allowed network"):
        replace(budget, enforced=True).check_feasible(two_groups)


def test_scale_by_hand(two_groups):
    """With half of 880: (16, 16) costs 464, (16, 8) 256, (8, 16) 312 and (8, 24) 456."""
    budget = make_budget("macs", 0.5, chain_cost, two_groups.dense)
    assert budget.scale(two_groups, [1.0, 1.0]) == (8, 16)
    assert budget.scale(two_groups, [0.1, 0.1]) == (16, 8)  # below the least of both: as if that were wanted
    assert budget.scale(two_groups, [1.0, 0.3]) == (16, 8)
    assert budget.scale(two_groups, [0.5, 1.0]) == (8, 16)
    assert make_budget("macs", 0.52, chain_cost, two_groups.dense).scale(two_groups, [0.5, 1.0]) == (8, 24)
    assert make_budget("macs", 1.0, chain_cost, two_groups.dense).scale(two_groups, [0.0, 0.4]) == (16, 32)


def test_an_unknown_fit_is_refused():
    assert get_fit("cut") == "cut"
    with pytest.raises(AmcError, match=r"budget.fit is 'squeeze'; expected one of scale, cut"):
        get_fit("squeeze")


@quick
@given(feasible(), st.data())
def test_scaled_requests_meet_the_budget_and_leave_no_room(problem, data):
    space, budget = problem
    ratios = [data.draw(st.floats(0, 1)) for _ in space.names]
    widths = budget.scale(space, ratios)
    assert chain_cost(widths) <= budget.leading.largest
    for group, choices in enumerate(space.choices):
        assert widths[group] in choices
        larger = [choice for choice in choices if choice > widths[group]]
        if larger:
            assert chain_cost([*widths[:group], larger[0], *widths[group + 1 :]]) > budget.leading.largest
    wanted = np.array([width / dense for width, dense in zip(widths, space.dense, strict=True)], np.float32)
    assert budget.scale(space, wanted.tolist()) == widths  # also where actions travel in float32


@quick
@given(feasible(), st.data())
def test_only_the_proportions_of_requests_count(problem, data):
    space, budget = problem
    ratios = [data.draw(st.floats(0.25, 1)) for _ in space.names]
    low = max(w / d / r for w, d, r in zip(space.minimum, space.dense, ratios, strict=True))
    if low <= 0.5:
        assert budget.scale(space, [ratio / 2 for ratio in ratios]) == budget.scale(space, ratios)


@pytest.mark.parametrize("ratio", [None, 0, -0.1, 1.01])
def test_bad_ratio_is_refused(ratio, two_groups):
    with pytest.raises(AmcError, match=f"budget.macs_ratio is {ratio}"):
        make_budget("macs", ratio, chain_cost, two_groups.dense)


@quick
@given(feasible(), st.data())
def test_any_requests_end_within_the_budget(problem, data):
    space, budget = problem
    budget.check_feasible(space)
    widths = []
    for group, choices in enumerate(space.choices):
        requested = space.nearest(group, data.draw(st.floats(0, 1)))
        width = budget.cut(space, widths, requested)
        assert width in choices
        assert width <= requested
        larger = [choice for choice in choices if width < choice <= requested]
        if larger:
            assert chain_cost([*widths, larger[0], *space.minimum[group + 1 :]]) > budget.leading.largest
        widths.append(width)
    assert chain_cost(widths) <= budget.leading.largest


@quick
@given(spaces(), st.integers(1, 16), st.floats(0.01, 1))
def test_choices_are_multiples_or_dense_and_keep_the_minimum(space, round_to, share):
    if round_to > max(space.dense):
        with pytest.raises(AmcError, match="larger than every channel group"):
            make_space(space.dense, round_to, share)
        return
    for dense, choices in zip(space.dense, make_space(space.dense, round_to, share).choices, strict=True):
        assert list(choices) == sorted(set(choices))
        assert choices[-1] == dense
        assert all(width % round_to == 0 for width in choices[:-1])
        assert all(width >= share * dense - 1e-6 for width in choices)


@quick
@given(spaces(), st.floats(0.01, 0.99))
def test_infeasible_budget_names_the_reachable_minimum(space, share):
    reachable = chain_cost(space.minimum) / chain_cost(space.dense)
    budget = make_budget("macs", share * reachable, chain_cost, space.dense)
    with pytest.raises(AmcError) as refused:
        budget.check_feasible(space)
    told = float(re.search(r"keeps (\d\.\d{4}) of the macs", str(refused.value))[1])
    assert reachable <= told < reachable + 1e-4
    make_budget("macs", told, chain_cost, space.dense).check_feasible(space)


@quick
@given(st.integers(1, 10**9).flatmap(lambda dense: st.tuples(st.integers(1, dense), st.just(dense))))
def test_a_network_is_within_a_budget_of_its_own_share_and_no_larger_one(costs):
    own, dense = costs
    limit = Limit("macs", lambda widths: widths[0], own / dense, dense)
    assert limit.met([own])
    assert limit.largest / dense <= own / dense
    assert not limit.met([own + 1])


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (0.5, (8, 16)),  # limit 440: 312 at a share of 0.5, 456 at 0.75, and (16, 16) costs 464
        (0.53, (8, 24)),  # limit 466: 456 at a share of 0.75
        (0.3, (16, 8)),  # limit 264: 168 at 0.25, 312 at 0.5; what is left takes (16, 8) at 256
    ],
)
def test_uniform_widths_by_hand(two_groups, ratio, expected):
    budget = make_budget("macs", ratio, chain_cost, two_groups.dense)
    assert uniform_widths(two_groups, budget) == expected


@quick
@given(feasible())
def test_uniform_widths_meet_the_budget(problem):
    space, budget = problem
    widths = uniform_widths(space, budget)
    assert all(width in choices for width, choices in zip(widths, space.choices, strict=True))
    assert chain_cost(widths) <= budget.leading.largest


def test_full_budget_keeps_everything(two_groups):
    budget = make_budget("macs", 1.0, chain_cost, two_groups.dense)
    assert uniform_widths(two_groups, budget) == two_groups.dense
    assert budget.cut(two_groups, [16], 32) == 32
