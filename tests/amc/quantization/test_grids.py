import math

import pytest
import torch

from amc import AmcError
from amc.quantization.grids import Range, scale_and_zero, weight_grid
from amc.quantization.settings import QuantizeSettings


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [8, 6, 4, 3, 2])
def test_weights_are_symmetric_and_one_channel_does_not_touch_another(bits):
    weight = draws(4, 18)
    weight[2] *= 1000
    grid = weight_grid(weight, bits, 0, least_error=False)
    integers = grid.nearest(weight)
    assert int(integers.abs().max()) == 2 ** (bits - 1) - 1
    assert torch.all((grid.values(integers) - weight).abs() <= grid.scale * 0.5001)


def test_the_least_error_is_less_than_that_of_the_whole_range():
    weight = draws(8, 500)
    weight[:, 0] = 9  # an outlier
    errors = []
    for least in (False, True):
        grid = weight_grid(weight, 4, 0, least_error=least)
        errors.append(float((grid.values(grid.nearest(weight)) - weight).square().sum()))
    assert errors[1] < 0.8 * errors[0]


def test_groups_of_inputs_have_scales_of_their_own_where_they_divide():
    weight = draws(2, 12)
    weight[:, 4:8] *= 100
    grid = weight_grid(weight, 4, 4, least_error=False)
    assert grid.scale.shape == (2, 3)
    assert torch.all((grid.values(grid.nearest(weight)) - weight).abs() <= grid.wide() * 0.5001)
    assert weight_grid(weight, 4, 5, least_error=False).scale.shape == (2, 1)


def test_a_channel_of_zeros_stays_zero():
    weight = draws(3, 6)
    weight[1] = 0
    grid = weight_grid(weight, 8, 0, least_error=True)
    assert torch.all(grid.scale > 0)
    assert torch.all(grid.values(grid.nearest(weight))[1] == 0)


def test_zero_lies_on_every_grid():
    for low, high in ((0.5, 3.0), (-3.0, -0.5), (-1.0, 2.0), (0.0, 0.0)):
        scale, zero = scale_and_zero(low, high)
        assert 0 <= zero <= 255
        assert scale > 0
    assert scale_and_zero(0.0, 2.55)[1] == 0


def seen(values, **settings):
    found = Range("x")
    for see in (found.see_limits, found.see_histogram):
        for part in values.split(100):
            see(part)
    return found.grid(QuantizeSettings(**settings)), found


def test_outliers_are_cut_by_percentile_and_least_error_alone():
    values = draws(20_000).abs()
    values[7] = 50.0
    whole, cut, least = (
        seen(values, ranges=ranges, percentile=99.0)[0][0] * 255 for ranges in ("minmax", "percentile", "mse")
    )
    assert whole == pytest.approx(50, rel=1e-3)
    assert cut == pytest.approx(float(values.quantile(0.99)), rel=0.05)
    assert cut < least < whole


def test_more_values_than_float32_counts_are_all_counted():
    values = torch.ones(2**25, dtype=torch.uint8)
    values[: 5 * 2**22] = 0  # 62.5%; counts that end at 2**24 would be 57%
    found = Range("x")
    found.see_limits(values)
    found.see_histogram(values)
    assert found.grid(QuantizeSettings(ranges="percentile", percentile=60))[0] * 255 < 0.01


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused_by_name(bad):
    with pytest.raises(AmcError, match="activation 'x' is NaN or infinite"):
        seen(torch.tensor([0.0, bad]))


def test_constant_values_have_no_spread():
    assert seen(torch.full((50,), 3.0))[1].spread == 0
    assert seen(torch.tensor([3.0, 3.5]))[1].spread == 0.5
