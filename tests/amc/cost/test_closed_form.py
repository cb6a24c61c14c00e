import pytest
import torch
from torchvision.models import mobilenet_v2

from amc.cost.closed_form import macs_cost, params_cost
from amc.cost.constant import with_other_macs
from amc.cost.counted import count_macs
from amc.cutting.slicing import SlicePlan, slice_model
from amc.graph.trace import trace
from amc.models import mobilenet_v1, resnet20
from tests.networks import PRUNABLE, SHAPE, Chain

# AMC's MobileNet v2 at 70% of the FLOPs (github.com/mit-han-lab/amc-models): the stem, the first block's
# output, expansion and output of the other blocks, the last convolution.
PAPER_V2_STEM = (24, 16)
PAPER_V2_BLOCKS = (
    (72, 24), (104, 24), (104, 32), (136, 32), (136, 32), (136, 64), (272, 64), (272, 64),
    (272, 64), (272, 96), (408, 96), (400, 96), (400, 160), (712, 160), (720, 160), (712, 248),
)  # fmt: skip
PAPER_V2_LAST = 848


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("a", "b"), [(8, 12), (4, 12), (8, 5), (3, 7)])
def test_small_network_by_hand(a, b, example):
    """12x12 images: a 3x3 convolution with padding, one with stride 2 and none (5x5 map), a linear layer."""
    model = Chain()
    graph = trace(model, example)
    assert macs_cost(graph)((a, b)) == 12 * 12 * 9 * 3 * a + 5 * 5 * 9 * a * b + b * 5
    batch_norm, biases = 2 * a, b + 5
    assert params_cost(graph, model)((a, b)) == 9 * 3 * a + batch_norm + 9 * a * b + b * 5 + biases


def test_mobilenet_v1_dense():
    graph = trace(mobilenet_v1(), torch.zeros(1, 3, 224, 224))
    assert macs_cost(graph)(graph.dense_widths) == 568_740_352


def test_mobilenet_v2_at_the_papers_profile():
    """AMC reports 211 M (table 4)."""
    graph = trace(mobilenet_v2(), torch.zeros(1, 3, 224, 224))
    published = dict(zip(("features.0.0", "features.1.conv.1"), PAPER_V2_STEM, strict=True))
    for block, (expansion, output) in enumerate(PAPER_V2_BLOCKS, start=2):
        published |= {f"features.{block}.conv.0.0": expansion, f"features.{block}.conv.2": output}
    published["features.18.0"] = PAPER_V2_LAST
    widths = [{published[name] for name in group.producers} for group in graph.groups]
    assert all(len(width) == 1 for width in widths)
    assert sum(len(group.producers) for group in graph.groups) == len(published)
    assert macs_cost(graph)([width.pop() for width in widths]) == 210_620_528


@pytest.mark.parametrize(
    "make",
    [*PRUNABLE, resnet20],
    ids=lambda make: make.__name__,
)
def test_cost_equals_a_count_of_the_sliced_network(make):
    model = make()
    graph = with_other_macs(trace(model, torch.zeros(1, *SHAPE)), model)
    macs, params, plan = macs_cost(graph), params_cost(graph, model), SlicePlan(graph, model)
    generator = torch.Generator().manual_seed(0)
    for widths in (
        graph.dense_widths,
        [1] * len(graph.groups),
        [int(torch.randint(1, width + 1, (), generator=generator)) for width in graph.dense_widths],
    ):
        sliced = slice_model(model, plan.cut(widths))
        assert macs(widths) == count_macs(sliced, SHAPE)
        assert params(widths) == parameters(sliced)


def test_layers_describe_their_dense_cost(example):
    model = Chain()
    graph = trace(model, example)
    assert sum(layer.macs for layer in graph.layers) == macs_cost(graph)(graph.dense_widths)
    assert params_cost(graph, model)(graph.dense_widths) == parameters(model)
