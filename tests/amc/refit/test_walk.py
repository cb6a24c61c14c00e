"""A walk gives what the network gives, however its operations are carried out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amc.models import resnet20
from amc.refit.operations import trace_operations
from amc.refit.walk import Walk, make_plan
from tests.networks import CLASSES, SHAPE, Grouped, Headed, Residual, Separable, SqueezeExcite, randomised


class Shared(Headed):
    """Values that are read twice, numbers added to maps, and a norm that is called by two layers."""

    def __init__(self):
        super().__init__(6)
        self.one, self.two, self.norm = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)

    def features(self, x):
        x = self.norm(self.one(x))
        y = F.relu(x) + x + 1
        z = y + y.mean((2, 3), keepdim=True)
        return F.relu(self.norm(self.two(z)) + y).relu()


def images(count=5):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0))


def carried_out(network, folded):
    """Walk with a stop at every third operation, and return the outputs."""
    operations = trace_operations(network, images(2))
    blocks = images().split(2)
    walk = Walk(make_plan(operations, network, folded=folded), network, blocks)
    counts = [walk.until(place) for place in (*range(0, len(operations.nodes), 3), len(operations.nodes))]
    assert sum(counts) == len(operations.nodes)
    assert torch.equal(torch.cat(blocks), images())
    return torch.cat(walk.values(operations.returned))


@pytest.mark.parametrize(
    "make", [Residual, Separable, Grouped, SqueezeExcite, Shared, lambda: resnet20(CLASSES)]
)
@torch.no_grad()
def test_a_walk_gives_what_the_network_gives(make):
    network = randomised(make(), seed=1).eval()
    whole = torch.cat([network(block) for block in images().split(2)])
    assert torch.equal(carried_out(network, folded=False), whole)
    assert torch.allclose(carried_out(network, folded=True), whole, rtol=1e-4, atol=1e-4)


def test_norms_are_folded_and_maps_written_into_where_nothing_else_reads_them():
    network = randomised(Shared()).eval()
    plan = make_plan(trace_operations(network, images(2)), network, folded=True)
    assert not plan.norms  # two layers read it
    assert {node.name for node in plan.overwriting} == {"add_3", "relu_1"}

    residual = randomised(Residual()).eval()
    plan = make_plan(trace_operations(residual, images(2)), residual, folded=True)
    assert {str(node.target) for node in plan.norms} == {
        "stem.0",
        "same.0.0",
        "same.1",
        "down.0.0",
        "shortcut.0",
    }


@torch.no_grad()
def test_layers_and_norms_that_do_more_are_left_as_they_are():
    network = randomised(Residual()).eval()
    network.stem[0].register_forward_hook(lambda module, inputs, output: output * 2)
    network.same[1].forward = lambda x: F.conv2d(x, network.same[1].weight * 3, padding=1)
    plan = make_plan(trace_operations(network, images(2)), network, folded=True)
    assert {str(node.target) for node in plan.norms} == {"same.0.0", "down.0.0", "shortcut.0"}
    whole = torch.cat([network(block) for block in images().split(2)])
    assert torch.allclose(carried_out(network, folded=True), whole, rtol=1e-4, atol=1e-4)
