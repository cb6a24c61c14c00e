"""What an activation cuts off need not be met: the refit gains on what it passes on."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from amc.refit.activations import RELU, RELU6, Bounds, bounds_after, revision
from tests.amc.refit.test_least_squares import solve


def counted(got, wanted, bounds):
    """Squared error of what an activation gets; where it cuts off, only the part beyond the bound."""
    free = torch.where(wanted <= bounds.low, got.clamp(max=bounds.low), wanted)
    free = torch.where(wanted >= bounds.high, got.clamp(min=bounds.high), free)
    return float((got - free).square().mean())


@pytest.mark.parametrize("bounds", [RELU, RELU6, Bounds(-1, 1)])
@pytest.mark.parametrize("groups", [1, 6])
def test_every_round_lowers_the_error_that_counts(bounds, groups):
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(500, 24, generator=generator)
    rows = 2 * torch.randn(500, 6, generator=generator) + patches[:, :6]
    weight = torch.zeros(6, 24 // groups, 1, 1)
    scale, offset = torch.tensor([1.0, -2.0, 0.5, 1.0, -1.0, 0.0]), torch.linspace(-1, 1, 6)
    errors = []
    for rounds in range(6):
        solved, shift = solve(
            patches, rows, weight, groups, ridge=0.0,
            revise=revision(rows, scale, offset, bounds), rounds=rounds,
        )  # fmt: skip
        outputs = F.conv2d(patches[..., None, None], solved, shift, groups=groups).flatten(1)
        errors.append(counted(outputs * scale + offset, rows * scale + offset, bounds))
    assert all(later < sooner for sooner, later in itertools.pairwise(errors))


def test_a_channel_of_scale_0_keeps_its_targets():
    rows, outputs = -torch.ones(4, 2), torch.full((4, 2), -3.0)
    revised = revision(rows, torch.tensor([1.0, 0.0]), torch.zeros(2), RELU)(outputs)
    assert revised.tolist() == [[-3.0, -1.0]] * 4


class Readers(nn.Module):
    """Convolutions that different operations read."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(7))
        self.relu, self.relu6, self.tanh = nn.ReLU(inplace=True), nn.ReLU6(), nn.Hardtanh(-2, 3)
        self.other = nn.SiLU()

    def forward(self, x):
        a, b, c, d, e, f, g = (conv(x) for conv in self.convs)
        linear = self.other(e) + f + F.relu(f) + g
        return self.relu(a) + self.relu6(b) + self.tanh(c) + torch.relu(d) + d.relu() + linear


def test_the_activation_that_alone_reads_a_layer_is_found():
    network = Readers()
    modules = dict(network.named_modules())
    found = {
        str(node.target): bounds_after(node, modules)
        for node in fx.symbolic_trace(network).graph.nodes
        if str(node.target).startswith("convs")
    }
    relu = Bounds(0, math.inf)
    expected = [relu, Bounds(0, 6), Bounds(-2, 3), relu, None, None, None]
    assert found == {f"convs.{index}": bounds for index, bounds in enumerate(expected)}
