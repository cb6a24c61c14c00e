import pytest
import torch
from torch import nn

from amc.errors import AmcError
from amc.graph import trace
from amc.importance import ORDERS, channel_orders
from amc.reconstruction import collect_moments, refit_layers
from tests.networks import Flattened, Residual, randomised


def images(count):
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(0)) + 0.3


def orders_of(model, name, count=0):
    """Return the graph and the orders; the moments are those of all positions of `count` images."""
    graph = trace(model, torch.zeros(1, 3, 12, 12))
    layers = refit_layers(graph) if count else ()
    moments = collect_moments(model, layers, images(count), positions_per_image=10**6)
    return graph, {
        name: order.tolist() for name, order in channel_orders(graph, model, name, moments).orders.items()
    }


def order(model, group, name):
    return orders_of(model, name)[1][group]


def three_channels(columns):
    """Three channels, read by a linear layer with the given weight columns."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    model[3].weight.data = torch.tensor(columns).T.contiguous()
    return model


@pytest.mark.parametrize(("name", "expected"), [("l1", [2, 1, 0]), ("l2", [1, 2, 0])])
def test_norms_by_hand(name, expected):
    """L1 norms 2, 5, 6; Euclidean 1.4, 5, 4.2."""
    assert order(three_channels([[1.0, 1.0], [-5.0, 0.0], [3.0, -3.0]]), "0", name) == expected


def test_ties_keep_the_order_of_the_channels():
    assert order(three_channels([[1.0, 1.0], [2.0, 2.0], [1.0, -1.0]]), "0", "l1") == [1, 0, 2]


def test_all_columns_of_a_flattened_channel_count():
    model = randomised(Flattened())
    with torch.no_grad():
        model.hidden.weight[:] = 0
        model.hidden.weight[0, 9 * 5 + 8] = 1.0  # a column of channel 5
        model.hidden.weight[0, 9 * 3 : 9 * 4] = 0.2  # all nine of channel 3
    assert order(model, "body.1.0", "l1")[:2] == [3, 5]
    assert order(model, "body.1.0", "l2")[:2] == [5, 3]


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_readers_count_alike_whatever_their_scale(name):
    model = randomised(Residual())
    before = order(model, "stem.0", name)
    with torch.no_grad():
        model.shortcut[0].weight *= 1000
    assert order(model, "stem.0", name) == before


@pytest.mark.parametrize("name", ORDERS)
def test_orders_are_permutations(name):
    graph, orders = orders_of(randomised(Residual()), name, count=8)
    assert list(orders) == list(graph.group_names)
    for group in graph.groups:
        assert sorted(orders[group.name]) == list(range(group.width))


@torch.no_grad()
def error_left(model, slot_columns, kept):
    """Squared error of the dense layer's output that the best linear map from the kept columns leaves."""
    features = model[:3](images(40)).double()
    target = features @ model[3].weight.double().T
    columns = [column for channel in kept for column in slot_columns(channel)]
    reduced = torch.cat([features[:, columns], torch.ones(len(features), 1)], 1)
    return float((reduced @ torch.linalg.lstsq(reduced, target).solution - target).square().sum())


@pytest.mark.parametrize("cells", [1, 2])
def test_elimination_removes_what_the_best_refit_misses_least(cells):
    """Also with several columns a channel, when a 2x2 map is flattened."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(cells), nn.Flatten(), nn.Linear(6 * cells**2, 4)
    )
    kept = orders_of(model, "obs", count=40)[1]["0"]

    def columns(channel):
        return range(channel * cells**2, (channel + 1) * cells**2)

    while len(kept) > 1:
        errors = {c: error_left(model, columns, [k for k in kept if k != c]) for c in kept}
        assert errors[kept[-1]] <= 1.01 * min(errors.values())
        kept = kept[:-1]


def test_random_order_depends_on_nothing_but_the_group():
    first = order(randomised(Residual(), seed=0), "stem.0", "random")
    torch.rand(7)
    assert order(randomised(Residual(), seed=1), "stem.0", "random") == first
    assert first != list(range(8))


def test_unknown_order():
    with pytest.raises(AmcError, match=r"compressor.order is 'l3'; expected one of .*l1"):
        order(randomised(Residual()), "stem.0", "l3")
