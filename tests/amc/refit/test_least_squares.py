"""Least squares on rows: what lstsq finds, and the ridge that is best on rows that were held out."""

import pytest
import torch

from amc.refit.least_squares import CHUNK_ROWS, RIDGE_STEPS, HeldOut, Problem, products, solve_rows


def test_products_in_float32_are_summed_in_float64():
    torch.manual_seed(0)
    left, right = torch.rand(2, 5 * CHUNK_ROWS + 7, 30), torch.rand(2, 5 * CHUNK_ROWS + 7, 3)
    exact = left.double().mT @ right.double()
    found = products(left, right)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(products(left.double(), right.double()), exact, rtol=1e-13, atol=0)


@pytest.mark.parametrize("intercept", [True, False])
def test_depthwise_solution_equals_lstsq_per_channel(intercept):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 1, 3, 3, generator=generator)
    patches = torch.randn(200, 27, generator=generator)
    targets = torch.randn(200, 3, generator=generator)
    solved, shift = solve_rows(Problem(patches, targets, weight, 3, intercept), ridge=1e-9)
    for channel in range(3):
        x = patches[:, 9 * channel : 9 * channel + 9]
        x = torch.cat([x, torch.ones(200, 1)], dim=1) if intercept else x
        expected = torch.linalg.lstsq(x, targets[:, channel : channel + 1]).solution[:, 0]
        assert torch.allclose(solved[channel].flatten(), expected[:9], atol=1e-4)
        assert shift[channel].item() == pytest.approx(expected[9].item() if intercept else 0.0, abs=1e-4)


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
    problem = Problem(patches, targets, present, groups, intercept=True)

    def error(weight, shift):
        outputs = torch.nn.functional.conv2d(others[..., None, None], weight, shift, groups=groups)
        return float((outputs.flatten(1).relu() - wanted.relu()).square().sum())

    errors = [error(*solve_rows(problem, ridge=1e-4 * 10**step)) for step in range(RIDGE_STEPS)]
    chosen = solve_rows(problem, ridge=1e-4, held_out=HeldOut(others, wanted, torch.relu))
    assert error(*chosen) == pytest.approx(min(errors), rel=1e-6)
    assert min(errors) not in (errors[0], errors[-1])
