"""Several limits at once: whatever is requested, and whichever rule allocates, all of them are met."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amc.budget.allocation import (
    even_errors,
    one_group_smaller,
    ramp_widths,
    ranked_widths,
    uniform_widths,
)
from amc.budget.budget import Budget, Limit, make_limit
from amc.budget.weighing import greedy_widths
from amc.budget.widths import width_space
from amc.errors import SettingError

quick = settings(deadline=None, max_examples=60, database=None)


def weighted(weights):
    """Return a cost like that of layers in a row, each layer with its own weight: maps of another size."""

    def cost(widths):
        return sum(w * a * b for w, (a, b) in zip(weights, pairwise((3, *widths, 10)), strict=True))

    return cost


def make_space(dense, round_to=1, share=0.1):
    return width_space(
        [f"g{i}" for i in range(len(dense))], dense, round_to=round_to, min_preserve_ratio=share
    )


def budget_of(space, **limits):
    """Return the budget with a limit for each kind: (cost, ratio)."""
    return Budget(tuple(make_limit(kind, ratio, cost, space.dense) for kind, (cost, ratio) in limits.items()))


@st.composite
def problems(draw):
    """Return a space and a feasible budget of two or three limits that weigh the layers differently."""
    dense = draw(st.lists(st.integers(2, 48), min_size=1, max_size=5))
    space = make_space(dense, draw(st.integers(1, min(8, max(dense)))), draw(st.floats(0.05, 1)))
    layers = len(dense) + 1
    falling = [2.0 ** (layers - place) for place in range(layers)]
    weights = [falling, falling[::-1]]
    if draw(st.booleans()):
        weights.append([draw(st.floats(0.1, 50)) for _ in range(layers)])
    limits = []
    for kind, own in zip(("macs", "params", "latency"), weights, strict=False):
        cost = weighted(own)
        reachable = cost(space.minimum) / cost(space.dense)
        ratio = reachable + draw(st.floats(0, 1)) * (1 - reachable)
        limits.append(make_limit(kind, min(ratio * (1 + 1e-12), 1), cost, space.dense))
    return space, Budget(tuple(limits))


def assert_full(space, budget, widths):
    """Check that the network meets every limit, and that no group could be wider."""
    assert budget.fits(widths)
    assert all(limit.cost(widths) <= limit.largest for limit in budget.limits)
    for group, choices in enumerate(space.choices):
        assert widths[group] in choices
        larger = [choice for choice in choices if choice > widths[group]]
        if larger:
            assert not budget.fits((*widths[:group], larger[0], *widths[group + 1 :]))


@quick
@given(problems(), st.data())
def test_any_requests_meet_every_limit(problem, data):
    space, budget = problem
    budget.check_feasible(space)
    ratios = [data.draw(st.floats(0, 1)) for _ in space.names]
    assert_full(space, budget, budget.scale(space, ratios))
    widths = []
    for group, choices in enumerate(space.choices):
        requested = space.nearest(group, ratios[group])
        width = budget.cut(space, widths, requested)
        larger = [choice for choice in choices if width < choice <= requested]
        if larger:
            assert not budget.fits([*widths, larger[0], *space.minimum[group + 1 :]])
        widths.append(width)
    assert budget.fits(widths)


@quick
@given(problems(), st.data(), st.booleans())
def test_every_allocation_meets_every_limit(problem, data, measured):
    space, budget = problem
    errors = even_errors(space)
    if measured:
        rises = {name: [data.draw(st.floats(0, 5)) for _ in range(len(errors[name]) - 1)] for name in errors}
        errors = {name: [sum(own[width:]) for width in range(len(own) + 1)] for name, own in rises.items()}
    scores = {
        name: [data.draw(st.floats(0, 1)) for _ in range(dense)]
        for name, dense in zip(space.names, space.dense, strict=True)
    }
    assert_full(space, budget, uniform_widths(space, budget))
    assert_full(space, budget, ramp_widths(space, budget, shallow=data.draw(st.booleans())))
    assert_full(space, budget, ranked_widths(space, budget, scores))
    assert budget.fits(greedy_widths(space, budget, errors))
    widths = [data.draw(st.sampled_from(choices)) for choices in space.choices]
    for network in one_group_smaller(space, budget.limits, widths, errors):
        assert budget.fits(network)
        assert all(new <= old for new, old in zip(network, widths, strict=True))


@quick
@given(problems(), st.floats(0, 1))
def test_a_limit_that_never_binds_changes_nothing(problem, share):
    space, budget = problem
    alone = Budget(budget.limits[:1])
    idle = Limit("idle", lambda widths: sum(widths), 1.0, float(sum(space.dense)))
    both = Budget((*alone.limits, idle))
    errors = even_errors(space)
    assert both.scale(space, [share] * len(space.names)) == alone.scale(space, [share] * len(space.names))
    assert greedy_widths(space, both, errors) == greedy_widths(space, alone, errors)
    assert uniform_widths(space, both) == uniform_widths(space, alone)


def first(widths):
    return 10 * widths[0] + widths[1]


def second(widths):
    return widths[0] + 10 * widths[1]


def test_greedy_counts_savings_on_limits_that_are_exceeded_only():
    space = make_space([10, 10])
    errors = {"g0": [10.0 - w for w in range(11)], "g1": [10.0 - w for w in range(11)]}
    costs = {"macs": first, "params": second}
    # 110 dense each. One step of g0 saves 10 of the macs and 1 of the params.
    alone = budget_of(space, macs=(first, 0.5))
    assert greedy_widths(space, alone, errors) == (4, 10)
    loose = budget_of(space, macs=(first, 0.5), params=(second, 1.0))
    assert greedy_widths(space, loose, errors) == (4, 10)  # a saving of params is worth nothing
    even = budget_of(space, **{kind: (cost, 0.5) for kind, cost in costs.items()})
    # While both are exceeded, steps of both groups save the same, and the first group wins the ties: (4, 5).
    # Then g0 grows again into what is left.
    assert greedy_widths(space, even, errors) == (5, 5)
    uneven = budget_of(space, macs=(first, 0.2), params=(second, 0.8))
    widths = greedy_widths(space, uneven, errors)
    assert widths[0] < widths[1]
    assert first(widths) <= 22
    assert second(widths) <= 88


def test_savings_are_relative_to_their_limits():
    """In bytes instead of parameters a limit is the same limit."""
    space = make_space([10, 10])
    errors = {"g0": [12.0 - 1.2 * w for w in range(11)], "g1": [10.0 - w for w in range(11)]}
    params = budget_of(space, macs=(first, 0.4), params=(second, 0.6))
    size = budget_of(space, macs=(first, 0.4), params=(lambda widths: 4096 * second(widths), 0.6))
    assert greedy_widths(space, params, errors) == greedy_widths(space, size, errors)


def test_the_missed_limits_are_named_with_all_that_can_be_reached():
    space = make_space([10, 10], share=0.5)
    feasible = budget_of(space, macs=(first, 0.5), params=(second, 0.5))
    feasible.check_feasible(space)
    with pytest.raises(SettingError) as caught:
        budget_of(space, macs=(first, 0.6), params=(second, 0.3)).check_feasible(space)
    assert str(caught.value).startswith(
        "budget.params_ratio is 0.3, but the smallest allowed network keeps 0.5000 of the macs and 0.5000 of "
        "the params; raise the budget"
    )
    with pytest.raises(SettingError, match=r"macs_ratio is 0.1 and budget.params_ratio is 0.3, but"):
        budget_of(space, macs=(first, 0.1), params=(second, 0.3)).check_feasible(space)


def test_an_eased_budget_falls_from_the_dense_cost_to_itself():
    space = make_space([10, 10])
    budget = budget_of(space, macs=(first, 0.3), params=(second, 0.7))
    assert budget.eased(1.0, space.dense) == budget
    assert [limit.ratio for limit in budget.eased(0.0, space.dense).limits] == [1.0, 1.0]
    assert [limit.ratio for limit in budget.eased(0.5, space.dense).limits] == [0.3**0.5, 0.7**0.5]
    assert not budget.eased(1.0, space.dense).fits((5, 5))
    assert budget.eased(0.5, space.dense).fits((5, 5))


def test_an_eased_budget_starts_from_what_a_network_costs():
    """Of a size the dense network has a quarter, as bytes; a limit that it meets stays as it is."""
    space = make_space([10, 10])
    size = make_limit("size", 0.1, first, space.dense, dense_cost=4 * first(space.dense))
    budget = Budget((size, make_limit("macs", 0.9, first, (20, 20))))
    assert [limit.left_of(space.dense) for limit in budget.limits] == [pytest.approx(0.4), 1.0]
    assert budget.eased(1.0, space.dense) == budget
    for progress, ratio in ((0.0, 0.25), (0.5, (0.25 * 0.1) ** 0.5)):
        eased = budget.eased(progress, space.dense)
        assert [limit.ratio for limit in eased.limits] == [pytest.approx(ratio), 0.9]
        assert eased.fits(space.dense) == (progress == 0.0)


def test_a_budget_describes_itself():
    space = make_space([10, 10])
    alone = budget_of(space, macs=(first, 0.5))
    both = budget_of(space, macs=(first, 0.5), params=(second, 0.7))
    assert alone.described() == {"kind": "macs", "ratio": 0.5}
    assert both.described() == {"kind": "macs", "ratio": 0.5, "further": {"params": 0.7}}
    assert both.shares((5, 10)) == {"macs": 60 / 110, "params": 105 / 110}
    assert both.shortfall((5, 10)) == (
        "0.5455 of the dense macs, over macs_ratio=0.5 and 0.9545 of the dense params, over params_ratio=0.7"
    )
    assert both.shortfall((4, 10)) == "0.9455 of the dense params, over params_ratio=0.7"
    assert both.of("params").ratio == 0.7
    with pytest.raises(SettingError, match="limits macs, params; expected a limit of the latency"):
        both.of("latency")
