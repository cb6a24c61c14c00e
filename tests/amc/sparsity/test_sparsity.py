"""Fine-grained pruning: counts, orders and curvatures by hand, zeros that stay zero."""

import copy

import pytest
import torch
from torch import nn

from amc.candidate.evaluator import Evaluator
from amc.cost.counted import count_macs
from amc.data import LabelledImages
from amc.errors import AmcError
from amc.graph.trace import trace
from amc.sparsity.scores import curvatures, magnitudes
from amc.sparsity.training import zeros_held
from amc.sparsity.weights import WHOLE, SparseBuilder, least_width, prunable_layers
from tests.networks import StandardisedConv


def make_net(groups=1):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, groups=groups), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    net[1].running_mean.uniform_(-0.1, 0.1)
    net[1].running_var.uniform_(0.5, 1.5)
    return net.eval()


def images_of(net):
    images = torch.randn(60, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    return LabelledImages(images, net(images).argmax(1))


def make_pruner(net, ceiling=(WHOLE, WHOLE), **options):
    images = images_of(net).images
    return SparseBuilder(net, trace(net, images[:1]), ceiling, images, **options)


def test_counts_are_exact():
    pruner = make_pruner(make_net())
    assert pruner.names == ("0", "5")
    assert pruner.counts == (288, 40)
    assert pruner.kept((50, 33)) == (144, 14)  # a third of 40, rounded up
    assert pruner.weights((50, 33)) == 158
    assert pruner.macs((50, 33)) == 36 * 144 + 14
    assert pruner.params((50, 33)) == 158 + 8 + 16 + 5  # biases and the norm
    assert pruner.params((WHOLE, WHOLE)) == sum(p.numel() for p in make_net().parameters())


class Twice(nn.Module):
    """A layer that is called by keyword, its weight in a second layer, and one whose weight is computed."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.second.weight = self.first.weight
        self.odd, self.last = StandardisedConv(4, 4, 3, padding=1), nn.Conv2d(4, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.last(self.odd(self.second(input=self.first(input=x)))).mean((2, 3)))


def test_all_multiply_adds_are_counted():
    net = Twice().eval()
    pruner = make_pruner(net)
    assert pruner.names == ("first", "last", "head")
    assert pruner.macs((WHOLE, WHOLE, WHOLE)) == count_macs(net, (4, 6, 6))
    assert pruner.macs((50, WHOLE, WHOLE)) == count_macs(net, (4, 6, 6)) - 72 * (36 + 9)


@pytest.mark.parametrize("order", ["magnitude", "curvature"])
def test_the_lowest_scores_become_zero_and_the_rest_stays(order):
    net = make_net()
    pruner = make_pruner(net, order=order)
    model = pruner.sparse_model((25, 50))
    for name, kept in zip(pruner.names, pruner.kept((25, 50)), strict=True):
        weight, dense = model.get_submodule(name).weight, net.get_submodule(name).weight
        stays = weight != 0
        assert int(stays.sum()) == kept
        assert torch.equal(weight[stays], dense[stays])
        if order == "magnitude":
            assert dense[stays].abs().min() >= dense[~stays].abs().max()
    assert Evaluator(pruner, images_of(net)).evaluate((25, 50)).params == pruner.params((25, 50))


def test_the_whole_network_gives_its_own_answers():
    net = make_net()
    pruner = make_pruner(net)
    evaluator = Evaluator(pruner, images_of(net))
    found = evaluator.evaluate((WHOLE, WHOLE))
    assert found.top1 == 100.0
    assert found.agreement == pytest.approx(0, abs=1e-6)
    assert (found.macs_ratio, found.params_ratio) == (1.0, 1.0)
    assert evaluator.evaluate((5, 5)).agreement < found.agreement - 1e-3
    assert torch.equal(pruner.sparse_model((WHOLE, WHOLE))[0].weight, net[0].weight)


def test_errors_are_the_summed_scores_of_the_removed_weights():
    net = make_net()
    pruner = make_pruner(net, order="magnitude")
    scores = magnitudes(net, pruner.layers, torch.empty(0))["5"].flatten().sort().values
    errors = pruner.errors["5"]
    assert len(errors) == WHOLE + 1
    assert errors[WHOLE] == 0
    assert errors[50] == pytest.approx(float(scores[:20].sum()))
    assert errors[0] == pytest.approx(float(scores.sum()))
    assert list(errors) == sorted(errors, reverse=True)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_curvature_predicts_the_change_of_the_logits(groups):
    """For a linear network and independent inputs, what one lost weight costs is exact in expectation."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(4, 8, 1, groups=groups, bias=False), nn.Flatten(), nn.Linear(8, 6), nn.Linear(6, 3)
    ).eval()
    images = torch.randn(4000, 4, 1, 1)
    graph = trace(net, images[:1])
    layers = prunable_layers(graph, net)
    scores = curvatures(net, layers, images)["0"]
    dense = net(images).detach().double()
    variance = dense.var(dim=0, correction=0).sum()
    for output, column in ((0, 0), (5, 4 // groups - 1)):
        with torch.no_grad():
            kept = net[0].weight[output, column].clone()
            net[0].weight[output, column] = 0
            lost = (net(images).double() - dense).square().sum(1).mean() / variance
            net[0].weight[output, column] = kept
        assert float(scores[output, column]) == pytest.approx(float(lost), rel=0.15)


class Repeated(nn.Module):
    """A linear network whose layer ``shared`` runs four times, or has its weight in a second layer."""

    def __init__(self, tied):
        super().__init__()
        torch.manual_seed(1)
        self.enter, self.shared = nn.Linear(4, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.leave = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 3, bias=False))
        self.again = nn.Linear(6, 6, bias=False) if tied else None
        if tied:
            self.again.weight = self.shared.weight

    def forward(self, x):
        x = self.enter(x.flatten(1))
        for layer in (self.shared, self.again) if self.again else [self.shared] * 4:
            x = x + layer(x)
        return self.leave(x)


@pytest.mark.parametrize("tied", [False, True])
def test_curvature_of_a_weight_counts_all_its_calls(tied):
    """For a linear network the Gauss-Newton diagonal is exact, also where the calls depend on each other."""
    net = Repeated(tied).eval()
    images = torch.randn(1000, 4, 1, 1, generator=torch.Generator().manual_seed(2))
    scores = curvatures(net, prunable_layers(trace(net, images[:1]), net), images)["shared"]
    exact, step = copy.deepcopy(net).double(), 1e-4
    weight, ratios = exact.shared.weight, []
    with torch.no_grad():
        dense = exact(images.double())
        variance = dense.var(dim=0, correction=0).sum()
        for row, column in ((0, 0), (2, 3), (5, 1), (4, 4), (1, 5), (3, 2)):
            kept = weight[row, column].clone()
            weight[row, column] = kept * (1 - step)
            moved = (exact(images.double()) - dense) / step
            weight[row, column] = kept
            ratios.append(float(moved.square().sum(1).mean() / variance / scores[row, column]))
    assert ratios == pytest.approx([1] * len(ratios), abs=0.1)


class Unused(nn.Module):
    """Computes a second output that it does not return."""

    def __init__(self):
        super().__init__()
        self.body, self.aside, self.head = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        x = self.body(x.flatten(1))
        self.aside(x)
        return self.head(x)


def test_a_layer_whose_result_is_unused_is_not_scored():
    net, images = Unused().eval(), torch.randn(20, 4, 1, 1)
    scores = curvatures(net, prunable_layers(trace(net, images[:1]), net), images)
    assert set(scores) == {"body", "head"}
    assert scores["body"].all()


def test_zero_weights_are_removed_first_and_stay_zero():
    first = make_pruner(make_net())
    model = first.sparse_model((40, 60))
    second = make_pruner(model, ceiling=(40, 60))
    again = second.sparse_model((40, 60))
    assert torch.equal(again[0].weight, model[0].weight)
    assert second.errors["0"][40] == second.errors["0"][WHOLE] == 0
    sparser = second.sparse_model((20, 60))
    assert int((sparser[0].weight != 0).sum()) == second.kept((20, 60))[0]
    assert ((sparser[0].weight != 0) <= (model[0].weight != 0)).all()


def test_shared_weights_are_counted_once():
    layers = (
        nn.Linear(6, 6),
        nn.ReLU(),
        nn.Linear(6, 6),
        nn.ReLU(),
        nn.Linear(6, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )
    net = nn.Sequential(*layers).eval()
    net[2].weight = net[0].weight
    graph = trace(net, torch.zeros(1, 6))
    assert [layer.name for layer in prunable_layers(graph, net)] == ["0", "4", "6"]


def test_zeros_are_held_while_the_rest_is_trained():
    model = make_pruner(make_net()).sparse_model((30, 50))
    names, dense = set(model.state_dict()), [model[i].weight.detach().clone() for i in (0, 5)]
    with zeros_held(model, ("0", "5")):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.randn(8, 4, 6, 6)), torch.arange(8) % 5).backward()
            optimizer.step()
    assert set(model.state_dict()) == names
    for module, before in zip((model[0], model[5]), dense, strict=True):
        assert ((module.weight != 0) == (before != 0)).all()
        assert not torch.equal(module.weight, before)
        assert isinstance(module.weight, nn.Parameter)


def test_zeros_of_a_shared_weight_are_held_in_every_layer():
    model = Repeated(tied=True)
    with torch.no_grad():
        model.shared.weight[:, :3] = 0
    with zeros_held(model, ("shared",)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
        during = model(torch.ones(1, 4))
    assert torch.equal(model(torch.ones(1, 4)), during)
    assert model.again.weight is model.shared.weight
    assert not model.shared.weight[:, :3].any()
    assert model.shared.weight[:, 3:].all()


def test_an_unknown_order_is_refused():
    with pytest.raises(AmcError, match=r"sparsify.order is 'size'; expected one of magnitude, curvature"):
        make_pruner(make_net(), order="size")


@pytest.mark.parametrize(("density", "width"), [(0.125, 13), (0.05, 5), (0.07, 7), (0.001, 1), (1.0, 100)])
def test_a_layer_keeps_at_least_the_least_density(density, width):
    assert WHOLE == 100
    assert least_width(density) == width
