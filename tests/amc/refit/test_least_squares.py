"""Least squares on rows: what lstsq finds, and the ridge that is best on rows that were held out."""

import pytest
import torch

from amc.refit.layer import Samples, refit_layer
from amc.refit.least_squares import CHUNK_ROWS, RIDGE_STEPS, HeldOut, Problem, solve_rows
from amc.refit.moments import CHUNK_ROWS as MOMENT_ROWS
from amc.refit.moments import products


def test_products_in_float32_are_summed_in_float64():
    torch.manual_seed(0)
    left, right = torch.rand(5 * MOMENT_ROWS + 7, 30), torch.rand(5 * MOMENT_ROWS + 7, 3)
    exact = left.double().mT @ right.double()
    found = products(left, right)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(products(left.double(), right.double()), exact, rtol=1e-13, atol=0)


def columns(patches, groups):
    """(rows, inputs of all groups) as one block of inputs of a problem."""
    return patches.view(len(patches), groups, -1).permute(1, 2, 0)


def solve(patches, targets, weight, groups, intercept=True, held_out=None, size=None, **options):
    """Solve for a weight (out, in / groups, kh, kw); in blocks of ``size`` rows."""
    inputs = columns(patches, groups).split(size or len(patches), -1)
    matrix = weight.reshape(groups, len(weight) // groups, -1).mT
    if held_out is not None:
        others, wanted, passed = held_out
        held_out = HeldOut([columns(others, groups)], wanted, passed)
    problem = Problem(inputs, targets, matrix, intercept)
    found, shift = solve_rows(problem, held_out=held_out, **options)
    return found.mT.reshape(weight.shape), shift


@pytest.mark.parametrize("intercept", [True, False])
def test_depthwise_solution_equals_lstsq_per_channel(intercept):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 1, 3, 3, generator=generator)
    patches = torch.randn(200, 27, generator=generator)
    targets = torch.randn(200, 3, generator=generator)
    solved, shift = solve(patches, targets, weight, 3, intercept, ridge=1e-9)
    for channel in range(3):
        x = patches[:, 9 * channel : 9 * channel + 9]
        x = torch.cat([x, torch.ones(200, 1)], dim=1) if intercept else x
        expected = torch.linalg.lstsq(x, targets[:, channel : channel + 1]).solution[:, 0]
        assert torch.allclose(solved[channel].flatten(), expected[:9], atol=1e-4)
        assert shift[channel].item() == pytest.approx(expected[9].item() if intercept else 0.0, abs=1e-4)


@pytest.mark.parametrize("size", [7, 1000, 3 * CHUNK_ROWS])
@pytest.mark.parametrize(("columns", "groups"), [(2, 1), (200, 1), (500, 2)])
def test_the_solution_is_that_of_all_rows_however_they_come(size, columns, groups):
    """Blocks, panels and float32 sums of many rows: all of it is one least-squares problem."""
    generator = torch.Generator().manual_seed(0)
    rows = 2 * CHUNK_ROWS + 100 if size > 7 else 600
    mixed = torch.randn(columns, columns, generator=generator) / columns**0.5
    patches = torch.randn(rows, columns, generator=generator) @ mixed + 0.5
    targets = torch.randn(rows, 2 * groups, generator=generator) + patches[:, :1] - patches[:, -1:]
    solved, shift = solve(
        patches, targets, torch.zeros(2 * groups, columns // groups), groups, size=size, ridge=1e-3
    )
    for group in range(groups):
        own = slice(group * columns // groups, (group + 1) * columns // groups)
        x, y = patches[:, own].double(), targets[:, 2 * group : 2 * group + 2].double()
        x = torch.cat([torch.ones(rows, 1), x], 1)
        gram = x.T @ x
        gram.diagonal()[1:] += 1e-3 * gram.diagonal()[1:].mean()
        expected = torch.linalg.solve(gram, x.T @ y)
        scale = expected.abs().max()
        assert (solved[2 * group : 2 * group + 2].T - expected[1:]).abs().max() < 1e-4 * scale
        assert (shift[2 * group : 2 * group + 2] - expected[0]).abs().max() < 1e-4 * scale


def test_inputs_that_are_zero_keep_their_weights():
    """No ridge and nothing to solve for: the matrix is singular."""
    weight = torch.randn(2, 3, 1, 1)
    solved, shift = solve(torch.zeros(20, 3), torch.ones(20, 2), weight, 1, ridge=1.0)
    assert torch.allclose(solved, weight)
    assert torch.allclose(shift, torch.ones(2))


def noisy(rows, generator):
    """Rows of 40 inputs that tell little of 3 outputs."""
    patches = torch.randn(rows, 40, generator=generator)
    return patches, patches[:, :3] + 2 * torch.randn(rows, 3, generator=generator)


@pytest.mark.parametrize("groups", [1, 3])
def test_the_ridge_with_the_least_error_on_held_out_rows_is_taken(groups):
    generator = torch.Generator().manual_seed(0)
    (patches, targets), (others, wanted) = noisy(60, generator), noisy(500, generator)
    patches, others = patches[:, : 13 * groups], others[:, : 13 * groups]
    present = torch.zeros(3, 13 * groups // groups, 1, 1)
    present[:, 0] = 0.9

    def error(weight, shift):
        outputs = torch.nn.functional.conv2d(others[..., None, None], weight, shift, groups=groups)
        return float((outputs.flatten(1).relu() - wanted.relu()).square().sum())

    errors = [
        error(*solve(patches, targets, present, groups, ridge=1e-4 * 10**step)) for step in range(RIDGE_STEPS)
    ]
    chosen = solve(patches, targets, present, groups, ridge=1e-4, held_out=(others, wanted, torch.relu))
    assert error(*chosen) == pytest.approx(min(errors), rel=1e-6)
    assert min(errors) not in (errors[0], errors[-1])


def test_held_out_rows_choose_the_ridge_where_the_least_one_is_0():
    generator = torch.Generator().manual_seed(0)
    patches, targets = noisy(560, generator)

    def error(ridge):
        layer = torch.nn.Linear(40, 3).requires_grad_(False)
        layer.weight.zero_()[:, 0] = 0.9
        samples = Samples([columns(patches, 1)], targets, torch.ones(3), torch.zeros(560, 3), fit=60)
        refit_layer(layer, samples, None, ridge=ridge, rounds=0)
        return float((layer(patches[60:]) - targets[60:]).square().mean())

    exact, _ = solve(patches[:60], targets[:60], torch.zeros(3, 40, 1, 1), 1, ridge=0)
    without = float((patches[60:] @ exact.flatten(1).T - targets[60:]).square().mean())
    assert error(0) == error(1e-6) < 0.9 * without
