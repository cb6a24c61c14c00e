"""Layers and sums on integers: sums are exact, and rounded once, as in the kernels of runtimes."""

import numpy as np
import pytest
import torch
from torch import nn

from amc.quantization.layers import IntegerLayer, IntegerSum, RoundTrip

DRAW = torch.Generator().manual_seed(5)


def integers(low, high, *shape):
    return torch.randint(low, high + 1, shape, generator=DRAW)


@pytest.mark.parametrize("channels", [8, 1024], ids=["in float32", "in float64"])
def test_a_layer_adds_integers_exactly_and_rounds_once(channels):
    step, out, zero = 0.0371, 0.0021, 3
    weight, scale = integers(-127, 127, 6, channels).to(torch.int8), torch.rand(6, generator=DRAW) * 1e-3
    bias = integers(-(2**26), 2**26, 6).to(torch.int32)
    whole = integers(0, 255, 50, channels) - zero
    layer = IntegerLayer(nn.Linear(channels, 6), weight, scale, bias, step=step, out=out)
    found = layer(whole.float() * step)
    sums = (whole @ weight.long().T + bias).numpy()
    assert abs(sums).max() > 2**24  # float32 does not hold them all
    factor = scale.numpy() * np.float32(step) / np.float32(out)
    expected = np.rint(sums.astype(np.float32) * factor)
    assert len(np.unique(expected)) > 100
    assert (found.numpy() == expected * np.float32(out)).all()


def test_an_output_that_is_on_no_grid_is_not_rounded():
    layer = nn.Conv2d(2, 3, 3, padding=1, groups=1)
    weight = integers(-127, 127, 3, 2, 3, 3).to(torch.int8)
    scale, bias = torch.full((3,), 0.01), torch.tensor([5, -7, 0], dtype=torch.int32)
    values = integers(-9, 9, 4, 2, 5, 5).float() * 0.5
    found = IntegerLayer(layer, weight, scale, bias, step=0.5)(values)
    expected = torch.conv2d(values, weight * 0.01, bias * 0.005, padding=1)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_a_sum_is_rounded_once_with_both_zero_points():
    left, right, out = RoundTrip(0.02, 100), RoundTrip(0.05, 7), RoundTrip(0.04, 90)
    a, b = integers(0, 255, 2000), integers(0, 255, 2000)
    found = out(IntegerSum(left, right, out)((a - 100) * left.scale, (b - 7) * right.scale))
    exact = (a.double() - 100) * float(left.scale) + (b.double() - 7) * float(right.scale)
    whole = exact / float(out.scale)
    clear = (whole % 1 - 0.5).abs() > 1e-4  # ties fall as float32 has them
    expected = (whole.round() + 90).clamp(0, 255) - 90
    assert clear.sum() > 1000
    assert torch.equal(found[clear], (expected * out.scale.double()).float()[clear])
