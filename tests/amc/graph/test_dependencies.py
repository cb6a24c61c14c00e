"""Operations that torch-pruning follows wrongly or without end are walls; the other groups are pruned."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from amc.cost.closed_form import macs_cost
from amc.cutting.exactness import check_exactness, prove
from amc.cutting.slicing import SlicePlan
from amc.errors import AmcError
from amc.graph import dependencies
from amc.graph.groups import exclude_groups
from amc.graph.trace import trace
from amc.models import ModelSpec, build
from tests.networks import (
    AttentionGate,
    Chain,
    Chunked,
    ConcatThenAdd,
    CrossStage,
    Encoder,
    FlattenedFromTheEnd,
    FrozenNorms,
    Gates,
    Ghost,
    Headed,
    Heads,
    InstanceNorms,
    Multiplied,
    PerChannel,
    Shuffled,
    Standardised,
    Transposed,
    Upscaled,
    WithoutGradients,
    conv_bn,
)


class Sliced(Chunked):
    """The halves are taken by a number."""

    def features(self, x):
        x = self.stem(x)
        return torch.cat([self.hidden(self.left(x[:, :4])), x[:, 4:]], 1)


@pytest.mark.parametrize(
    ("make", "pruned", "whole", "reason"),
    [
        (Shuffled, ["stem.0", "inner.0", "after.0", "last.0"], "mixed.0", "reshape from 1x8x12x12 to 1x2x4x"),
        (Sliced, ["left.0", "hidden.0"], "stem.0", "splits the channels at places that may be fixed"),
        (Multiplied, ["narrow.0", "last.0"], "stem.0", r"twice is a grouped convolution \(groups=6\)"),
        (Upscaled, ["stem.0", "last.0"], "wide.0", "pixel shuffle moves channels into space"),
        (Encoder, ["perceptron.1"], "stem", "attention is an attention layer, whose width is fixed"),
        (Standardised, ["inner.0.0", "last.0"], "first.0", r"second.0 \(StandardisedConv\) has a forward"),
        (Heads, ["stem.0", "body.0"], "map", "the network's output"),
    ],
)  # fmt: skip
def test_groups_that_cannot_be_followed_stay_whole_and_are_named(make, pruned, whole, reason, example):
    graph = trace(make(), example)
    assert list(graph.group_names) == pruned
    (item,) = [item for item in graph.unprunable if item.name == whole]
    assert re.search(reason, item.reason)


class Positions(Chain):
    """A bare parameter of every position of every channel."""

    def __init__(self):
        super().__init__()
        self.slopes = nn.Parameter(torch.ones(1, 8, 12, 12))

    def features(self, x):
        return self.second(self.first(x) * self.slopes)


def test_a_bare_parameter_is_named_as_in_the_network(example):
    (item,) = [item for item in trace(Positions(), example).unprunable if item.name == "first.0"]
    assert item.reason == "slopes is a bare parameter on the same channels"


class Unsaved(Chain):
    """A buffer of one number a channel that a fresh build has and a file of weights lacks."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.arange(8.0).view(8, 1, 1), persistent=False)

    def features(self, x):
        return self.second(self.first(x) * self.scale)


class Cosine(Chain):
    """A linear layer whose weight is used by a product of its own."""

    def forward(self, x):
        x = F.normalize(self.features(x).mean((2, 3)), dim=1)
        return x @ F.normalize(self.head.weight, dim=1).T


class Centred(Chain):
    """The mean over the channels is taken off."""

    def features(self, x):
        x = self.first(x)
        return self.second(x - x.mean(1, keepdim=True))


class Affine(nn.Module):
    """A scale and an offset a channel of tokens."""

    def __init__(self, channels):
        super().__init__()
        self.scale, self.offset = nn.Parameter(torch.ones(1, 1, channels)), nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return torch.addcmul(self.offset, self.scale, x)


class Mixed(Headed):
    """Tokens whose channels pass a linear layer over their 9 positions."""

    channels = 8

    def __init__(self):
        super().__init__(self.channels)
        self.stem, self.norm = nn.Conv2d(3, self.channels, 4, stride=4), Affine(self.channels)
        self.tokens, self.scale = self.layers(), nn.Parameter(torch.ones(self.channels))
        self.wide, self.narrow = nn.Linear(self.channels, 16), nn.Linear(16, self.channels)

    def layers(self):
        return nn.Linear(9, 9)

    def features(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = x + self.scale * self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.narrow(self.wide(x).relu())
        return x.transpose(1, 2).unflatten(2, (3, 3))


class TwiceMixed(Mixed):
    """A hidden layer of positions, whose width is free."""

    def layers(self):
        return nn.Sequential(nn.Linear(9, 6), nn.GELU(), nn.Linear(6, 9))


class AsMany(Mixed):
    """As many positions as channels: no length tells them apart."""

    channels = 9


class Blurred(Chain):
    """A fixed blur of every channel between layers, in a module with its own number of channels."""

    def __init__(self):
        super().__init__()
        self.register_buffer("blur", torch.full((8, 1, 3, 3), 1 / 9), persistent=False)
        self.channels = 8

    def features(self, x):
        return self.second(F.conv2d(self.first(x), self.blur, groups=self.channels))


class Attended(Headed):
    """Positions that are weighed by what is taken of all channels (CBAM)."""

    def __init__(self, *taken):
        super().__init__(10)
        self.stem, self.inner, self.last = conv_bn(3, 8), conv_bn(8, 6), conv_bn(6, 10)
        self.weigh, self.taken = nn.Conv2d(len(taken), 1, 3, padding=1), taken

    def features(self, x):
        x = self.inner(self.stem(x))
        maps = torch.cat([take(x) for take in self.taken], 1)
        return self.last(x * self.weigh(maps).sigmoid())


class Spread(Attended):
    """A convolution of the sum of all channels that makes as many again."""

    def __init__(self):
        super().__init__(total)
        self.spread = nn.Conv2d(1, 6, 1)

    def features(self, x):
        x = self.inner(self.stem(x))
        return self.last(x + self.spread(total(x)))


def largest(x):
    return x.max(1, keepdim=True)[0]


def total(x):
    return x.sum(1).unsqueeze(1)


def mean(x):
    return x.mean(1, keepdim=True)


def smallest(x):
    return x.amin(1, keepdim=True)


class Moved(Chain):
    """An operation between the layers."""

    def __init__(self, move):
        super().__init__()
        self.move = move

    def features(self, x):
        return self.second(self.move(self.first(x)))


class ActivatedNorm(nn.Module):
    """A batch norm of the user's own with its activation, as InPlace-ABN has it."""

    def __init__(self, width, affine=True):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5) if affine else None
        self.bias = nn.Parameter(torch.rand(width) - 0.5) if affine else None
        self.register_buffer("running_mean", torch.rand(width) - 0.5)
        self.register_buffer("running_var", torch.rand(width) + 0.5)

    def forward(self, x):
        own = self.running_mean, self.running_var, self.weight, self.bias
        return F.leaky_relu(F.batch_norm(x, *own, self.training))


class ActivatedNorms(Chain):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), ActivatedNorm(8))
        self.second = nn.Sequential(nn.Conv2d(8, 12, 3, bias=False), ActivatedNorm(12, affine=False))


class Padded(Headed):
    """Channels of zeros are padded on in a shortcut (CIFAR ResNets)."""

    def __init__(self, before):
        super().__init__(10)
        self.stem, self.wide, self.last = conv_bn(3, 4), conv_bn(4, 8), conv_bn(8, 10)
        self.pad = (0, 0, 0, 0, before, 4 - before)

    def features(self, x):
        x = self.stem(x)
        return self.last(self.wide(x) + F.pad(x, self.pad))


class Turned(ConcatThenAdd):
    """Channels of three layers, of which each has its own number, in an order that is reversed."""

    def __init__(self):
        super().__init__()
        self.last = conv_bn(10, 10)

    def features(self, x):
        return self.last(super().features(x).flip(1))


def in_windows(x):
    """Take maps apart into four windows, as images of the batch, and put them together again."""
    n, _, height, width = x.shape
    windows = x.view(n, x.shape[1], 2, height // 2, 2, width // 2).permute(0, 2, 4, 1, 3, 5)
    windows = F.relu(windows.reshape(4 * n, -1, height // 2, width // 2))
    back = windows.view(n, 2, 2, -1, height // 2, width // 2).permute(0, 3, 1, 4, 2, 5)
    return back.reshape(n, -1, height, width)


def mixed_by_einsum(x):
    return torch.einsum("bchw,cd->bdhw", x, torch.eye(8).to(x) + 0.1)


def widths_left_whole(graph):
    return {item.name: item.width for item in graph.unprunable}


@pytest.mark.parametrize(
    ("make", "whole"),
    [
        (lambda: Attended(largest, total), ["weigh"]),
        (Spread, []),
        (lambda: Moved(lambda x: x.flip(-1).roll(1, 2)), []),
        (lambda: Moved(lambda x: x.cumsum(2)), []),
        (lambda: Moved(in_windows), []),
        (lambda: Padded(0), []),
        (ActivatedNorms, []),
    ],
)
def test_what_is_taken_of_all_channels_has_none_of_them(make, whole, example):
    model = make().eval()
    graph = trace(model, example)
    assert list(widths_left_whole(graph)) == [*whole, "head"]
    assert prove(model, graph).left_whole == ()


def test_channels_are_left_whole_if_what_is_taken_of_them_changes(example):
    model = Attended(smallest, largest).eval()
    found = prove(model, trace(model, example))
    assert found.left_whole == ("inner.0",)
    (item,) = [item for item in found.graph.unprunable if item.name == "inner.0"]
    assert item.reason.startswith("a maximum and a minimum over the channels: removing some would change it")


def test_channels_that_the_graph_mistakes_are_left_whole_with_the_error(example):
    model = Padded(0)
    model.stem, model.wide, model.last = conv_bn(3, 8), nn.Conv2d(8, 4, 3, padding=1), conv_bn(4, 10)
    model.pad = (0, 0, 0, 0, 0, -4)  # takes channels off the stem
    found = prove(model.eval(), trace(model, example))
    assert found.left_whole == ("stem.0", "wide")
    assert widths_left_whole(found.graph) == {"head": 5, "stem.0": 8, "wide": 4}
    (reason,) = [item.reason for item in found.graph.unprunable if item.name == "stem.0"]
    assert reason.startswith("its channels cannot be taken out: IndexError: index 4 is out of bounds")


def test_channels_with_padding_behind_them_are_pruned_with_the_first_of_those_they_are_added_to(example):
    """As in PyramidNet; the convolution is reached first, and has channels that the stem lacks."""
    model = Padded(0)
    model.wide = nn.Conv2d(4, 8, 3, padding=1)
    found = prove(model.eval(), trace(model, example))
    assert dict(zip(found.graph.group_names, found.graph.dense_widths, strict=True)) == {
        "stem.0#0": 4,
        "last.0": 10,
    }
    assert found.left_whole == ("wide#1",)


def test_each_stream_that_is_left_whole_is_listed_once_with_its_width(example):
    assert widths_left_whole(trace(Turned(), example)) == {
        "left.0": 4,
        "right.0": 6,
        "whole.0": 10,
        "head": 5,
    }
    graph = trace(Padded(4), example)
    assert widths_left_whole(graph) == {"stem.0": 4, "wide.0": 8, "head": 5}
    graph = trace(Padded(0), example)
    assert graph.group_names == ("stem.0", "last.0")
    assert widths_left_whole(exclude_groups(graph, "stem.0")) == {"stem.0": 4, "wide.0": 8, "head": 5}


@pytest.mark.parametrize(
    ("make", "whole", "pruned", "reason"),
    [
        (lambda: Attended(mean, largest), "inner.0", ["stem.0", "last.0"], "a mean over the channels"),
        (lambda: Moved(lambda x: x.flip(1)), "first.0", ["second"], "the channels are reversed by a flip"),
        (lambda: Moved(lambda x: x.roll(1, 1)), "first.0", ["second"], "the channels are shifted by a roll"),
        (lambda: Moved(mixed_by_einsum), "first.0", ["second"], "a matrix product mixes the channels"),
        (lambda: Moved(lambda x: x.cumsum(1)), "first.0", ["second"], "a cumulative sum mixes the channels"),
        (lambda: Padded(2), "wide.0", ["last.0"], "padding adds channels of a constant before them"),
        (Mixed, "stem", ["wide"], "tokens is a linear layer over positions, applied to each of these"),
        (TwiceMixed, "stem", ["tokens.0", "wide"], "tokens.0 is a linear layer over positions"),
        (AsMany, "stem", ["wide"], "tokens is a linear layer over positions"),
        (Blurred, "first.0", ["second"], "a depthwise convolution outside of the layers has a fixed number"),
        (Unsaved, "first.0", ["second"], "scale is a buffer on the same channels that is not saved"),
        (Cosine, "second", ["first.0"], "a product outside of the layers mixes the channels"),
        (Centred, "first.0", ["second"], "a mean over the channels"),
        (AttentionGate, "gate.0", ["stem.0", "inner.0", "last.0"], "its one channel is broadcast"),
    ],
)
def test_only_the_channels_that_are_to_blame_are_left_whole(make, whole, pruned, reason, example):
    model = make().eval()
    graph = trace(model, example)
    assert list(graph.group_names) == pruned
    (item,) = [item for item in graph.unprunable if item.name == whole]
    assert item.reason.startswith(reason)
    assert check_exactness(model, graph, SlicePlan(graph, model)) < 1e-12


@pytest.mark.parametrize(
    ("make", "widths"),
    [
        (PerChannel, {"stem.0": 8, "left": 6, "right": 8}),
        (FrozenNorms, {"first.0": 8, "second": 12}),
        (InstanceNorms, {"first.0": 8, "first.2": 8, "second.0": 12}),
        (Transposed, {"stem.0#0": 6, "deep.0": 8, "up.0#1": 6, "last.0": 10}),
        (AttentionGate, {"stem.0": 8, "inner.0": 6, "last.0": 10}),
        (Gates, {"stem.0": 8, "wide": 6, "narrow": 6, "twice": 6}),
        (CrossStage, {"stem.0": 4, "last.0": 10}),
        (Chunked, {"stem.0": 4, "left.0": 6, "hidden.0": 4}),
        (WithoutGradients, {"frozen.0": 8, "detached.0": 6, "last.0": 10}),
        (FlattenedFromTheEnd, {"first.0": 6, "other": 10, "second.0": 8}),
    ],
)
def test_all_layers_lie_on_channels_that_can_be_pruned(make, widths, example):
    """``tests.networks.PRUNABLE`` has all of them: they are proved exact, too."""
    graph = trace(make(), example)
    assert dict(zip(graph.group_names, graph.dense_widths, strict=True)) == widths
    assert macs_cost(graph)([0] * len(widths)) == 0


def test_halves_of_a_product_are_one_channel(example):
    graph = trace(Gates(), example)
    (wide,) = [group for group in graph.groups if group.name == "wide"]
    places = {(slot.module, slot.axis): slot.positions for slot in wide.slots}
    assert places["wide", "out"] == places["each.0", "out"] == tuple((i, i + 6) for i in range(6))
    assert places["narrow", "in"] == tuple((i,) for i in range(6))


def test_transposed_convolutions_cost_what_their_inputs_do(example):
    layer = trace(Transposed(), example).layer("up.0")
    assert (layer.kind, layer.positions, layer.macs) == ("transposed", 36, 36 * 4 * 8 * 6)


@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, lambda: torch.set_grad_enabled(False)]
)
def test_layers_without_gradients_are_pruned(context, example):
    class Frozen(Chain):
        def features(self, x):
            with context():
                x = self.first(x)
            return self.second(x.clone())

    model = Frozen().eval()
    graph = trace(model, example)
    assert graph.group_names == ("first.0", "second")
    assert check_exactness(model, graph, SlicePlan(graph, model)) < 1e-12
    with context():
        assert not torch.is_grad_enabled()  # nothing stays patched


class Counting(Chain):
    """A buffer of one number a channel beside one that the forward pass writes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.arange(8.0))
        self.register_buffer("seen", torch.zeros(4))

    def features(self, x):
        self.seen.add_(1)
        return self.second(self.first(x) * self.scale.view(-1, 1, 1))


def test_a_buffer_that_is_written_does_not_hide_the_others(example):
    (first, _) = trace(Counting(), example).groups
    assert ("", "scale") in {(slot.module, slot.tensor) for slot in first.slots}


@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_layers_in_a_checkpoint_are_pruned(example):
    class Saving(Chain):
        def features(self, x):
            return self.second(checkpoint(self.first, x, use_reentrant=True))

    graph = trace(Saving(), example)
    assert graph.group_names == ("first.0", "second")


def test_layers_that_cannot_be_traced_are_named(example):
    class Copied(Chain):
        def features(self, x):
            return self.second(torch.from_numpy(self.first(x).detach().numpy()))

    (item,) = [item for item in trace(Copied(), example).unprunable if item.name == "first.0"]
    assert item.reason == "runs without gradients, so its channels cannot be followed"


def test_a_network_with_many_reasons_is_refused_in_a_short_line(example):
    normed = [layer for _ in range(6) for layer in (nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3))]
    with pytest.raises(AmcError, match=r"no prunable layers: .*; and 4 more") as caught:
        trace(nn.Sequential(*normed, nn.Conv2d(3, 3, 1)), example)
    assert len(str(caught.value)) < 300


def test_channels_that_share_a_place_are_one(example):
    graph = trace(Ghost(), example)
    assert [(group.name, group.width) for group in graph.groups] == [("stem.0", 4), ("last.0", 10)]
    places = {(slot.module, slot.axis): slot.positions for slot in graph.groups[0].slots}
    assert places["whole.0", "out"] == places["last.0", "in"] == ((0, 4), (1, 5), (2, 6), (3, 7))


def test_heads_are_no_classifier(example):
    assert not trace(Heads(), example).classifies
    assert trace(Chunked(), example).classifies


def test_a_network_that_would_take_too_many_steps_is_refused(example, monkeypatch):
    monkeypatch.setattr(dependencies, "WORK_LIMIT", 20)
    with pytest.raises(
        AmcError, match=r"Shuffled: following the channels of .* takes more than 20 steps"
    ) as caught:
        trace(Shuffled(), example)
    assert "\n" not in str(caught.value)


FAILING_NETWORKS = {
    "shufflenet_v2_x0_5": (32, 18),
    "lraspp_mobilenet_v3_large": (32, 30),
    "ssdlite320_mobilenet_v3_large": (64, 37),
    "fasterrcnn_mobilenet_v3_large_320_fpn": (64, 30),
    "swin_t": (64, 12),
}
"""Networks on which torch-pruning alone fails: their image size and number of groups."""


def traced(name):
    size, _ = FAILING_NETWORKS[name]
    model = build(ModelSpec(name, 5, (3, size, size)), trust_dotted_path=False).eval()
    return model, trace(model, torch.zeros(1, 3, size, size))


@pytest.mark.parametrize("name", [name for name in FAILING_NETWORKS if name != "swin_t"])
def test_networks_that_torch_pruning_alone_fails_on_are_traced(name):
    _, graph = traced(name)
    assert len(graph.groups) == FAILING_NETWORKS[name][1]


@pytest.mark.parametrize(
    "name",
    [
        "shufflenet_v2_x0_5",
        # Cutting each of the others in three ways takes seconds.
        *(pytest.param(name, marks=pytest.mark.slow) for name in list(FAILING_NETWORKS)[1:]),
    ],
)
def test_networks_that_torch_pruning_alone_fails_on_are_cut_exactly(name):
    model, graph = traced(name)
    assert len(graph.groups) == FAILING_NETWORKS[name][1]
    assert check_exactness(model, graph, SlicePlan(graph, model), samples=1) < 1e-9
