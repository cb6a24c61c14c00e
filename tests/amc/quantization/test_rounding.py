import pytest
import torch
from torch import nn

from amc.quantization.grids import weight_grid
from amc.quantization.rounding import Inputs, by_moments, input_moments, mean_error
from tests.networks import SHAPE, Grouped, Separable, randomised


def correlated(groups, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(groups, size, size, generator=generator, dtype=torch.float64)
    inputs = torch.randn(groups, 400, size, generator=generator, dtype=torch.float64) @ mixing + 0.5
    return Inputs(inputs.transpose(1, 2) @ inputs / 400, inputs.mean(1)), inputs


def output_error(weight, integers, grid, inputs):
    groups, _, size = inputs.shape
    error = (weight - grid.values(integers)).double().reshape(groups, -1, size)
    return float((inputs @ error.transpose(1, 2)).square().sum())


@pytest.mark.parametrize(("groups", "size", "gain"), [(1, 90, 0.7), (4, 9, 0.9)])  # few inputs help less
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_later_inputs_make_up_for_errors(groups, size, gain, bits):
    moments, inputs = correlated(groups, size)
    weight = torch.randn(12, size, generator=torch.Generator().manual_seed(1))
    grid = weight_grid(weight, bits, 0, least_error=True)
    integers = by_moments(weight, grid, moments.gram)
    assert int(integers.abs().max()) <= grid.largest
    rounded = output_error(weight, integers, grid, inputs)
    assert rounded < gain * output_error(weight, grid.nearest(weight), grid, inputs)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_inputs_that_are_independent_or_zero_are_rounded_to_nearest(level):
    weight = torch.randn(5, 70, generator=torch.Generator().manual_seed(1))
    grid = weight_grid(weight, 4, 10, least_error=False)
    gram = level * torch.eye(70, dtype=torch.float64)[None]
    assert torch.equal(by_moments(weight, grid, gram), grid.nearest(weight))


def test_the_mean_error_is_that_of_the_outputs():
    moments, inputs = correlated(2, 6)
    weight, rounded = torch.randn(4, 6), torch.randn(4, 6)
    error = (weight - rounded).double().reshape(2, 2, 6)
    expected = (inputs @ error.transpose(1, 2)).mean(1).flatten()
    torch.testing.assert_close(mean_error(weight, rounded, moments).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [Separable, Grouped])
def test_moments_are_those_of_the_inputs_of_each_group(make):
    model = randomised(make())
    images = torch.randn(6, *SHAPE)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    found = input_moments(model, list(layers), images)
    assert found.keys() == layers.keys()
    for name, layer in layers.items():
        groups = getattr(layer, "groups", 1)
        size = layer.weight[0].numel()
        assert found[name].gram.shape == (groups, size, size)
        assert found[name].mean.shape == (groups, size)
        # A mean of squares is no less than the square of the mean.
        spread = found[name].gram - found[name].mean[:, :, None] * found[name].mean[:, None]
        assert float(spread.diagonal(dim1=1, dim2=2).min()) > -1e-8
