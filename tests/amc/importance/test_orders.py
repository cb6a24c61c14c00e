import copy

import pytest
import torch
from torch import nn

from amc.candidate.evaluator import channel_evaluator
from amc.candidate.settings import CandidateSettings
from amc.data import LabelledImages
from amc.errors import AmcError
from amc.graph.trace import trace
from amc.importance.gradients import gradient_batches
from amc.importance.names import ORDERS
from amc.importance.orders import SCORERS, channel_orders
from amc.importance.taylor import taylor_terms
from amc.refit.moments import collect_moments, refit_layers
from tests.networks import (
    CLASSES,
    Dense,
    Flattened,
    Residual,
    Separable,
    Shared,
    SqueezeExcite,
    Summed,
    randomised,
)


def images(count):
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(0)) + 0.3


def labelled(count, classes=CLASSES):
    return LabelledImages(images(count), torch.arange(count) % classes)


def orders_of(model, name, count=0, classes=CLASSES):
    """Return the graph and the orders; the moments are those of all positions of `count` images."""
    graph = trace(model, torch.zeros(1, 3, 12, 12))
    layers = refit_layers(graph) if count else ()
    moments = collect_moments(model, layers, images(count), positions_per_image=10**6)
    found = channel_orders(graph, model, name, moments, labelled(count, classes))
    return graph, {name: order.tolist() for name, order in found.orders.items()}


def order(model, group, name, count=0, classes=CLASSES):
    return orders_of(model, name, count, classes)[1][group]


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
def test_consumers_of_a_norm_have_equal_weight_at_any_scale(name):
    model = randomised(Residual())
    before = order(model, "stem.0", name)
    with torch.no_grad():
        model.shortcut[0].weight *= 1000
    assert order(model, "stem.0", name) == before


def test_every_order_is_listed():
    assert set(ORDERS) == {"obs", "taylor", *SCORERS}


@pytest.mark.parametrize("name", ORDERS)
def test_orders_are_permutations(name):
    graph, orders = orders_of(randomised(Residual()), name, count=8)
    assert list(orders) == list(graph.group_names)
    for group in graph.groups:
        assert sorted(orders[group.name]) == list(range(group.width))


@torch.no_grad()
def error_left(model, slot_columns, kept):
    """Squared error of the dense layer's output that the best linear map from the kept columns leaves."""
    features = model[:3](images(400)).double()
    target = features @ model[3].weight.double().T
    columns = [column for channel in kept for column in slot_columns(channel)]
    reduced = torch.cat([features[:, columns], torch.ones(len(features), 1)], 1)
    return float((reduced @ torch.linalg.lstsq(reduced, target).solution - target).square().sum())


@pytest.mark.parametrize("cells", [1, 2])
def test_elimination_removes_the_channel_with_the_smallest_refit_error(cells):
    """Also with several columns a channel, when a 2x2 map is flattened."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(cells), nn.Flatten(), nn.Linear(6 * cells**2, 4)
    )
    kept = orders_of(model, "obs", count=400)[1]["0"]

    def columns(channel):
        return range(channel * cells**2, (channel + 1) * cells**2)

    while len(kept) > 1:
        errors = {c: error_left(model, columns, [k for k in kept if k != c]) for c in kept}
        assert errors[kept[-1]] <= 1.01 * min(errors.values())
        kept = kept[:-1]


@pytest.mark.parametrize(("bias", "place"), [(True, 5), (False, 0)])
def test_a_constant_channel_is_free_only_where_a_bias_takes_it_up(bias, place):
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4, bias=bias)
    )
    randomised(model)
    with torch.no_grad():
        model[0].weight[2] = 0
        model[0].bias[2] = 3.0
    assert orders_of(model, "obs", count=100)[1]["0"].index(2) == place


@pytest.mark.parametrize(("name", "expected"), [("l1", [0, 2, 1]), ("l2", [2, 0, 1]), ("obs", [2, 0, 1])])
def test_channels_that_no_layer_reads_are_ordered_by_their_filters(name, expected):
    model = Summed()
    with torch.no_grad():
        model.gate.weight[:] = 0
        model.gate.weight[0, :4, 0, 0] = torch.tensor([1.0, 1.0, -1.0, 1.0])
        model.gate.weight[1, 0, 0, 0] = 0.5
        model.gate.weight[2, 0, 0, 0] = 3.0
    assert order(model, "gate", name, count=8) == expected
    assert order(model, "gate", "taylor", count=8) == [2, 0, 1]


def test_random_order_depends_on_nothing_but_the_group():
    first = order(randomised(Residual(), seed=0), "stem.0", "random")
    torch.rand(7)
    assert order(randomised(Residual(), seed=1), "stem.0", "random") == first
    assert first != list(range(8))


def test_unknown_order():
    with pytest.raises(AmcError, match=r"^order is 'l3'; expected one of obs, taylor, l1, .*$"):
        order(randomised(Residual()), "stem.0", "l3")


# --- taylor


def by_hand(model, batches):
    """Scores of the three channels of `three_channels`: the gradient of softmax cross-entropy written out."""
    scores = torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        for inputs, labels in batches:
            pooled = model[:3](inputs).double()
            weight = model[3].weight.double()
            slope = (pooled @ weight.T + model[3].bias).softmax(1) - nn.functional.one_hot(labels, 2)
            scores += (slope @ weight * pooled).mean(0).square() / len(batches)
    return scores


def test_taylor_by_hand_batch_by_batch():
    """Batches of 40: their mean squares order the channels otherwise than the square of all 120 at once."""
    differs = 0
    for seed in range(20):
        torch.manual_seed(seed)
        model = three_channels(torch.randn(3, 2).tolist())
        data = LabelledImages(images(120) + 3 * torch.randn(120, 3, 1, 1), torch.arange(120) % 2)
        batches = [(data.images[chosen], data.labels[chosen]) for chosen in gradient_batches(120)]
        expected = by_hand(model, batches).argsort(descending=True).tolist()
        graph = trace(model, torch.zeros(1, 3, 12, 12))
        assert channel_orders(graph, model, "taylor", {}, data).orders["0"].tolist() == expected
        differs += expected != by_hand(model, [(data.images, data.labels)]).argsort(descending=True).tolist()
    assert differs > 0


@pytest.mark.parametrize("network", [Residual, Separable, Dense, Flattened, SqueezeExcite, Shared])
def test_a_term_is_the_gradient_by_a_gate_on_the_layers_input(network):
    model = randomised(network())
    layers = refit_layers(trace(model, torch.zeros(1, 3, 12, 12)))
    data = labelled(60)
    terms = taylor_terms(model, layers, data)
    modules = dict(model.named_modules())
    inputs = {name: modules[name].weight.shape[1] for name in layers}
    gates = {name: torch.ones(size, requires_grad=True) for name, size in inputs.items()}
    for name in layers:
        shape = (-1, 1, 1) if modules[name].weight.ndim == 4 else (-1,)
        modules[name].register_forward_pre_hook(
            lambda _, args, gate=gates[name], shape=shape: args[0] * gate.view(shape)
        )
    for row, chosen in enumerate(gradient_batches(60)):
        loss = nn.functional.cross_entropy(model(data.images[chosen]), data.labels[chosen])
        for name, gradient in zip(layers, torch.autograd.grad(loss, gates.values()), strict=True):
            atol = 1e-5 * float(gradient.abs().max())
            torch.testing.assert_close(terms[name][row].float(), gradient, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("count", [1, 50, 51, 120, 500])
def test_batches_hold_every_image_once_and_are_of_one_size(count):
    batches = gradient_batches(count)
    assert sorted(torch.cat(batches).tolist()) == list(range(count))
    sizes = [len(batch) for batch in batches]
    assert len(sizes) == -(-count // 50)
    assert max(sizes) <= 50
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("labels", [torch.arange(500) % 10, torch.arange(500) // 50], ids=["turns", "sorted"])
def test_batches_mix_the_classes(labels):
    assert all(len(labels[batch].unique()) > 5 for batch in gradient_batches(500))


def test_channels_that_no_reader_uses_come_last():
    model = randomised(Residual())
    with torch.no_grad():
        for reader in (model.same[0][0], model.down[0][0], model.shortcut[0]):
            reader.weight[:, [1, 6]] = 0
    assert order(model, "stem.0", "taylor", 16)[-2:] == [1, 6]


def test_all_columns_of_a_flattened_channel_add_up_before_the_square():
    """Two channels of the same four columns' sizes; in one of them they cancel."""
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(1.0)
        model[3].weight[0] = torch.tensor([1.0, -1.0, 1.0, -1.0, 0.3, 0.3, 0.3, 0.3])
        model[3].weight[1] = 0
    assert order(model, "0", "l1", 16) == [0, 1]
    assert order(model, "0", "taylor", 16, classes=2) == [1, 0]


def test_consumer_layers_have_equal_weight_in_taylor():
    """The order follows the sum of each reader's shares, not the sum of their scores."""
    model = randomised(Residual(), seed=1)
    readers = ["same.0.0", "down.0.0", "shortcut.0"]
    terms = taylor_terms(model, readers, labelled(96))
    scores = [terms[name].square().mean(0) for name in readers]
    shares = sum(score / score.sum() for score in scores)
    assert order(model, "stem.0", "taylor", 96) == shares.argsort(descending=True).tolist()
    assert shares.argsort().tolist() != sum(scores).argsort().tolist()


def test_taylor_depends_on_the_labels():
    model = randomised(Residual())
    graph = trace(model, torch.zeros(1, 3, 12, 12))
    data = labelled(32)
    shifted = LabelledImages(data.images, (data.labels + 1) % CLASSES)
    first, second = (channel_orders(graph, model, "taylor", {}, each).orders for each in (data, shifted))
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_frozen_networks_get_the_same_scores_and_stay_unchanged():
    model = randomised(Residual())
    frozen = copy.deepcopy(model).requires_grad_(False)
    half = copy.deepcopy(model)
    half.stem.requires_grad_(False)
    half.same.requires_grad_(False)
    expected = orders_of(model, "taylor", 16)[1]
    with torch.no_grad():
        assert orders_of(frozen, "taylor", 16)[1] == orders_of(half, "taylor", 16)[1] == expected
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert all(parameter.grad is None for net in (model, frozen, half) for parameter in net.parameters())


def test_taylor_uses_eval_mode_and_changes_no_statistics():
    model = randomised(Residual())
    expected = orders_of(model, "taylor", 16)[1]
    before = copy.deepcopy(model.state_dict())
    assert orders_of(model.train(), "taylor", 16)[1] == expected
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_taylor_orders_are_nested_and_refitted(trained, data):
    graph = trace(trained, torch.zeros(1, 3, 12, 12))

    def evaluator(**settings):
        return channel_evaluator(
            trained, graph, data.calibration, data.search_val, CandidateSettings(order="taylor", **settings)
        )

    refitted, plain = evaluator(), evaluator(refit=False)
    previous = {group.name: set() for group in graph.groups}
    for share in (0.25, 0.5, 0.75, 1.0):
        widths = tuple(max(1, round(share * width)) for width in graph.dense_widths)
        kept = {name: set(channels.tolist()) for name, channels in refitted.builder.cut(widths).kept.items()}
        theirs = plain.builder.cut(widths).kept
        assert kept == {name: set(channels.tolist()) for name, channels in theirs.items()}
        assert all(previous[name] <= kept[name] for name in kept)
        previous = kept
    widths = tuple((width + 1) // 2 for width in graph.dense_widths)
    assert refitted.evaluate(widths).agreement > plain.evaluate(widths).agreement
    assert refitted.builder.estimated_errors == {}


def test_a_network_that_is_sure_of_its_labels_keeps_a_gradient():
    """In float32 the loss is zero here, and its gradient by the output of the label with it."""
    model = three_channels([[1.0, 0.0], [150.0, -100.0], [2.0, 0.0]])
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(0.1)
        model[3].bias.zero_()
    labels = torch.zeros(8, dtype=torch.long)
    assert nn.functional.cross_entropy(model(images(8)), labels) == 0
    found = taylor_terms(model, ["3"], LabelledImages(images(8), labels))["3"]
    torch.testing.assert_close(found[0].square(), by_hand(model, [(images(8), labels)]), rtol=1e-2, atol=0)
    assert found[0].abs().argsort(descending=True).tolist() == [1, 2, 0]


@pytest.mark.parametrize("label", [CLASSES, -1])
def test_labels_without_an_output_are_refused(label):
    data = labelled(60)
    data.labels[7] = label
    with pytest.raises(AmcError, match=r"^labels run from .*the network has 5 outputs.*$"):
        taylor_terms(randomised(Residual()), ["head"], data)


def test_no_calibration_images_are_refused():
    with pytest.raises(AmcError, match=r"^got no calibration images.*order=taylor.*$"):
        order(randomised(Residual()), "stem.0", "taylor")


def test_nan_weights_are_refused():
    model = randomised(Residual())
    with torch.no_grad():
        model.stem[0].weight[0] = torch.nan
    with pytest.raises(AmcError, match=r"^the gradient of the loss by layer 'same.0.0' is not finite.*$"):
        taylor_terms(model, ["same.0.0", "head"], labelled(4))


class Frozen(Residual):
    """Computes its features without gradients, as a frozen backbone may."""

    def features(self, x):
        with torch.no_grad():
            return super().features(x)


def test_layers_that_run_without_gradients_are_ranked_all_the_same():
    layers = ["same.0.0", "head"]
    found, expected = (taylor_terms(randomised(make()), layers, labelled(4)) for make in (Frozen, Residual))
    assert all(torch.equal(found[name], expected[name]) for name in layers)


class Copied(Residual):
    """Computes its features outside of PyTorch."""

    def features(self, x):
        return torch.from_numpy(super().features(x).detach().numpy())


def test_a_network_that_cannot_be_differentiated_is_refused():
    with pytest.raises(AmcError, match=r"^Copied cannot be differentiated for order=taylor: .*$"):
        taylor_terms(randomised(Copied()), ["stem.0", "head"], labelled(4))
