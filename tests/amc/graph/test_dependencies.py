"""Operations that torch-pruning follows wrongly or without end are walls; the other groups are pruned."""

import re

import pytest
import torch
from torch import nn

from amc.cutting.exactness import check_exactness
from amc.cutting.slicing import SlicePlan
from amc.errors import AmcError
from amc.graph import dependencies
from amc.graph.trace import trace
from amc.models import ModelSpec, build
from tests.networks import (
    Chain,
    Chunked,
    Encoder,
    Ghost,
    Heads,
    Multiplied,
    Shuffled,
    Standardised,
    Upscaled,
)


@pytest.mark.parametrize(
    ("make", "pruned", "whole", "reason"),
    [
        (Shuffled, ["stem.0", "inner.0", "after.0", "last.0"], "mixed.0", "reshape from 1x8x12x12 to 1x2x4x"),
        (Chunked, ["left.0", "hidden.0"], "stem.0", "splits the channels at places"),
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


class Tilted(Chain):
    """A bare parameter a channel."""

    def __init__(self):
        super().__init__()
        self.slopes = nn.Parameter(torch.ones(8))

    def features(self, x):
        return self.second((self.first(x).permute(0, 2, 3, 1) * self.slopes).permute(0, 3, 1, 2))


def test_a_bare_parameter_is_named_as_in_the_network(example):
    (item,) = [item for item in trace(Tilted(), example).unprunable if item.name == "first.0"]
    assert item.reason == "slopes is a bare parameter on the same channels"


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
