"""The sensitivity of the logits, against whole Jacobians."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from amc.candidate.error_curves import ErrorCurves
from amc.candidate.evaluator import channel_evaluator
from amc.candidate.settings import CandidateSettings
from amc.data import LabelledImages
from amc.errors import AmcError
from amc.graph.trace import trace
from amc.importance.elimination import eliminate, make_reader
from amc.importance.sensitivity import logit_sensitivity
from amc.scoring.run import logits
from tests.networks import SHAPE, Chain, randomised


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3),
    ).eval()  # fmt: skip


def exact(network, layer, images):
    """Sum of squared derivatives of all logits by every output of a layer, per channel; mean over images."""
    head, tail = network[: layer + 1], network[layer + 1 :]
    total, logits = 0, []
    for image in images:
        middle = head(image[None]).detach()
        jacobian = torch.autograd.functional.jacobian(lambda y: tail(y.clone())[0], middle)
        squares = jacobian.square().sum(0)[0]
        total = total + squares.flatten(1).sum(1) if squares.ndim > 1 else total + squares
        logits.append(network(image[None])[0])
    variance = torch.stack(logits).var(0, correction=0).sum()
    return (total / len(images) / variance).detach().double()


def test_it_is_the_squared_jacobian_despite_operations_in_place():
    network, images = tiny(), torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    found = logit_sensitivity(network, ("0", "2", "6"), images, probes=600)
    for layer in (0, 2, 6):
        assert torch.allclose(found[str(layer)], exact(network, layer, images), rtol=0.15)


def test_frozen_networks_and_inference_change_nothing_and_nothing_is_left_behind():
    network, images = tiny(), torch.randn(6, 3, 8, 8)
    before = copy.deepcopy(network.state_dict())
    free = logit_sensitivity(network, ("2",), images)["2"]
    with torch.no_grad():
        frozen = logit_sensitivity(network.requires_grad_(False), ("2",), images)["2"]
    assert torch.equal(free, frozen)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_it_does_not_depend_on_the_scale_of_the_logits():
    network, images = tiny(), torch.randn(6, 3, 8, 8)
    one = logit_sensitivity(network, ("0",), images)["0"]
    with torch.no_grad():
        network[8].weight *= 7
        network[8].bias *= 7
    assert torch.allclose(logit_sensitivity(network, ("0",), images)["0"], one, rtol=1e-4)


def test_a_network_without_gradients_is_named():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return torch.from_numpy(self.layer(x.flatten(1)[:, :4]).detach().numpy())

    with pytest.raises(AmcError, match="Detached cannot be differentiated"):
        logit_sensitivity(Detached(), ("layer",), torch.randn(4, 3, 8, 8))


class Queries(nn.Module):
    """Learned queries, which are scored against each image: their layers read none."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3)
        self.queries = nn.Parameter(torch.randn(5, 6))
        self.first, self.second = nn.Linear(6, 7), nn.Linear(7, 8)

    def read(self, first, images):
        keys = self.stem(images).flatten(2)
        return (self.second(first.tanh()) @ keys).logsumexp(2)

    def forward(self, images):
        return self.read(self.first(self.queries), images)


def test_layers_that_read_no_image_have_a_sensitivity():
    network, images = Queries().eval(), torch.randn(6, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    first = network.first(network.queries).detach()
    jacobian = torch.autograd.functional.jacobian(lambda outputs: network.read(outputs, images), first)
    variance = network(images).var(0, correction=0).sum()
    expected = (jacobian.square().sum((0, 1, 2)) / len(images) / variance).detach().double()
    found = logit_sensitivity(network, ("first", "second"), images, probes=600)
    assert torch.allclose(found["first"], expected, rtol=0.15)
    assert found["second"].all()


def test_a_layer_that_is_used_without_a_gradient_is_named():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.second(self.first(x.flatten(1)).data)

    with pytest.raises(AmcError, match=r"Hidden cannot be differentiated for order=obs: .* layer 'first'"):
        logit_sensitivity(Hidden(), ("first", "second"), torch.randn(4, 4, 1, 1))


def test_inputs_that_depend_on_each_other_are_ordered_without_a_ridge():
    """Two equal inputs and one of their own, so large that the least ridge is lost in rounding."""
    rows = 1000 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).double()[:, [0, 0, 1]]
    extended = torch.cat([rows, torch.ones(50, 1)], 1)
    weight, columns = torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[0], [1], [2]])
    reader = make_reader(
        extended.T @ extended / 50, weight, columns, torch.ones(1), ridge=0.0, intercept=True
    )
    assert int(eliminate([reader], 3).order[-1]) in (0, 1)


def test_an_output_that_the_logits_ignore_does_not_affect_the_order():
    """Two inputs, two outputs; the second output is the larger, and listens to the second input alone."""
    gram = torch.eye(3, dtype=torch.float64)
    weight = torch.tensor([[1.0, 0.1], [0.0, 10.0]])
    columns = torch.tensor([[0], [1]])
    heard = make_reader(gram, weight, columns, torch.tensor([1.0, 1.0]), ridge=0.0, intercept=True)
    ignored = make_reader(gram, weight, columns, torch.tensor([1.0, 0.0]), ridge=0.0, intercept=True)
    assert eliminate([heard], 2).order.tolist() == [1, 0]
    assert eliminate([ignored], 2).order.tolist() == [0, 1]


def test_the_error_curves_predict_the_change_of_the_logits():
    """One group at one width at a time, the rest dense: predicted and real errors go together."""
    network = randomised(Chain(), seed=3).eval()
    graph = trace(network, torch.zeros(1, *SHAPE))
    images = torch.randn(120, *SHAPE, generator=torch.Generator().manual_seed(0))
    data = LabelledImages(images, torch.zeros(120, dtype=torch.long))
    settings = CandidateSettings(positions_per_image=64, measured_images=0)
    evaluator = channel_evaluator(network, graph, data, data, settings)
    curves = ErrorCurves(evaluator)()
    dense = logits(network, images, 64)
    predicted, real = [], []
    for place, group in enumerate(graph.groups):
        for width in range(1, group.width):
            widths = [*graph.dense_widths]
            widths[place] = width
            moved = evaluator.outputs(widths, images) - dense
            real.append(float(moved.square().sum(1).mean() / dense.var(0, correction=0).sum()))
            predicted.append(curves[group.name][width])
    assert np.corrcoef(np.log(predicted), np.log(real))[0, 1] > 0.95
    assert 0.2 < np.median(np.array(predicted) / np.array(real)) < 5
