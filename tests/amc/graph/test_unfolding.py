"""Layers that compute something else than their weights say must be seen before they are cut or refitted."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from amc.candidate.builder import CandidateBuilder
from amc.candidate.evaluator import channel_evaluator
from amc.candidate.settings import CandidateSettings
from amc.cutting.exactness import check_exactness
from amc.cutting.slicing import SlicePlan
from amc.graph.trace import trace
from amc.graph.unfolding import (
    POSITION_BLOCK,
    block_positions,
    block_rows,
    layer_patches,
    layer_rows,
    sample_positions,
    weight_matrix,
    weight_of,
    why_not_linear,
)
from amc.scoring.run import outputs
from tests.networks import (
    SHAPE,
    ChannelsLast,
    FrozenNorms,
    Gates,
    Residual,
    SameConv,
    SamePadded,
    Standardised,
    StandardisedConv,
    Transposed,
    randomised,
)


class Wrapped(nn.Conv2d):
    def forward(self, images):
        return super().forward(images)


class Scaled(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.ones(sizes[1]))

    def forward(self, rows):
        return super().forward(rows) * self.gain


class Doubled(nn.Linear):
    def forward(self, rows):
        return 2 * super().forward(rows)


def hooked(layer):
    layer.register_forward_pre_hook(lambda module, inputs: (inputs[0].abs(),))
    return layer


def everywhere(module, inputs):
    return sample_positions(module, inputs, 10**6, torch.Generator())


@pytest.mark.parametrize(
    ("layer", "shape", "reason"),
    [
        (nn.Conv2d(4, 6, 3, padding=1), (1, 4, 7, 7), None),
        (Wrapped(4, 6, 3, padding=1), (1, 4, 7, 7), None),
        (Wrapped(4, 6, 3), (1, 4, 7, 7), "forward"),  # no padding declared: taken for TensorFlow's
        (SameConv(4, 6, 3, stride=2), (1, 4, 8, 7), None),
        (StandardisedConv(4, 6, 3), (1, 4, 7, 7), r"\(StandardisedConv\) has a forward"),
        (Scaled(4, 6), (1, 4), "parameters besides weight and bias: gain"),
        (Doubled(4, 6), (1, 9, 4), "no plain product with its weight"),
        (hooked(nn.Linear(4, 6)), (1, 4), "hook"),
        (nn.ConvTranspose2d(4, 6, 3), (1, 4, 7, 7), None),
        (hooked(nn.ConvTranspose2d(4, 6, 3)), (1, 4, 7, 7), "hook"),
        (parametrizations.weight_norm(nn.Conv2d(4, 6, 3)), (1, 4, 7, 7), "computes its weight from other"),
        (parametrizations.spectral_norm(nn.Linear(4, 6)), (1, 4), "computes its weight from other"),
    ],
)
def test_only_matrix_products_can_be_refitted(layer, shape, reason):
    found = why_not_linear(layer.eval(), torch.Size(shape))
    assert (found is None) == (reason is None), found
    if reason is not None:
        assert re.search(reason, found)


@pytest.mark.parametrize("size", [7, 8, 9])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 4])
def test_patches_follow_dynamic_padding(size, stride, kernel):
    layer = SameConv(2, 3, kernel, stride=stride)
    inputs = torch.randn(2, 2, size, size + 1)
    chosen, weight = everywhere(layer, inputs), layer.weight.flatten(1)
    found = layer_patches(layer, inputs, chosen) @ weight.T + layer.bias
    torch.testing.assert_close(found, layer_rows(layer, layer(inputs), chosen), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2, "stride": 2},
        {"kernel_size": (4, 3), "stride": (2, 1), "padding": 1},
        {"kernel_size": 3, "stride": 3, "padding": 2, "output_padding": 1, "dilation": 2},
    ],
)
def test_patches_of_a_transposed_convolution(options):
    layer, inputs = nn.ConvTranspose2d(2, 3, **options), torch.randn(2, 2, 5, 4)
    chosen = everywhere(layer, inputs)
    assert len(chosen) == layer(inputs)[0, 0].numel()
    found = layer_patches(layer, inputs, chosen) @ weight_matrix(layer).T + layer.bias
    torch.testing.assert_close(found, layer_rows(layer, layer(inputs), chosen), atol=1e-5, rtol=1e-5)
    assert torch.equal(weight_of(layer, weight_matrix(layer)), layer.weight)


def test_rows_of_a_linear_layer_on_maps_are_its_last_axis():
    layer, inputs = nn.Linear(3, 5), torch.randn(2, 4, 6, 3)
    chosen = everywhere(layer, inputs)
    assert len(chosen) == 24
    found = layer_patches(layer, inputs, chosen) @ layer.weight.T + layer.bias
    torch.testing.assert_close(found, layer_rows(layer, layer(inputs), chosen))


def test_a_normed_weight_leaves_its_groups_whole(example):
    model = Residual()
    parametrizations.weight_norm(model.down[1])
    graph = trace(model, example)
    assert graph.group_names == ("stem.0", "same.0.0")
    reason = "down.1 (ParametrizedConv2d) computes its weight from other parameters"
    for name in ("down.0.0", "down.1"):
        (item,) = [each for each in graph.unprunable if each.name == name]
        assert item.reason.startswith(reason)


@pytest.mark.parametrize("make", [SamePadded, ChannelsLast, Transposed, Gates, FrozenNorms])
def test_refit_and_folding_keep_layers_of_ones_own_right(make, data):
    """At full widths nothing may change, at small ones the refit must help, and folding must not matter."""
    model = randomised(make())
    graph = trace(model, torch.zeros(1, *SHAPE))
    assert check_exactness(model, graph, SlicePlan(graph, model)) < 1e-12
    images, widths = data.search_val.images, tuple(width - 2 for width in graph.dense_widths)
    errors = {}
    for refit in (True, False):
        settings = CandidateSettings(refit=refit, positions_per_image=64)
        evaluator = channel_evaluator(model, graph, data.calibration, data.search_val, settings)
        whole = evaluator.outputs(graph.dense_widths, images)
        torch.testing.assert_close(whole, outputs(model, images, 50), atol=1e-4, rtol=1e-4)
        builder = evaluator.builder
        pruned = builder.pruned_model(builder.cut(widths)).eval()
        found = outputs(pruned, images, 50)
        with builder.looked_up(builder.cut(widths)) as folded:
            torch.testing.assert_close(outputs(folded, images, 50), found, atol=1e-4, rtol=1e-4)
        errors[refit] = (found - whole).square().mean()
        if refit:
            cut = builder.cut(widths)
            assert builder.refit_in_sequence(pruned, cut, data.calibration.images).layers > 0
            errors["sequence"] = (outputs(pruned.eval(), images, 50) - whole).square().mean()
    assert errors[True] < 0.7 * errors[False]
    assert errors["sequence"] < errors[False]


def test_layers_that_cannot_be_refitted_are_neither_folded_nor_refitted(data):
    """Their inputs change where something before them is pruned, but their weights must stay."""
    model = randomised(Standardised())
    graph = trace(model, torch.zeros(1, *SHAPE))
    assert "second.0" not in graph.norm_after
    builder = CandidateBuilder(model, graph, data.calibration, CandidateSettings())
    cut = builder.cut((3, 4))
    pruned = builder.pruned_model(cut).eval()
    images = data.search_val.images
    with builder.looked_up(cut) as folded:
        found = outputs(folded, images, 50)
    torch.testing.assert_close(found, outputs(pruned, images, 50), atol=1e-4, rtol=1e-4)
    assert builder.refit_in_sequence(pruned, cut, data.calibration.images).layers == 5
    for name in ("second.0", "fourth"):
        assert torch.equal(pruned.get_submodule(name).weight, model.get_submodule(name).weight)


def test_stale_statistics_of_a_norm_that_stays_are_put_back(data):
    """A norm with an activation is not folded: what one candidate shifted must not reach the next."""
    model = randomised(SamePadded())
    graph = trace(model, torch.zeros(1, *SHAPE))
    evaluator = channel_evaluator(model, graph, data.calibration, data.search_val, CandidateSettings())
    before = evaluator.outputs(graph.dense_widths, data.search_val.images)
    evaluator.outputs(tuple(width // 2 for width in graph.dense_widths))
    after = evaluator.outputs(graph.dense_widths, data.search_val.images)
    assert torch.equal(before, after)


def test_blocks_of_images_have_positions_of_their_own_and_rows_stay_image_by_image():
    layer = nn.Conv2d(3, 4, 3, padding=1)
    images = torch.randn(2 * POSITION_BLOCK + 5, 3, 12, 12)
    blocks = images.split(POSITION_BLOCK)
    chosen = block_positions(layer, blocks, 7, torch.Generator().manual_seed(0))
    assert [own.shape for own in chosen] == [(7,)] * 3
    assert len({tuple(own.tolist()) for own in chosen}) == 3
    patches = torch.cat([layer_patches(layer, *block) for block in zip(blocks, chosen, strict=True)])
    rows = block_rows(layer, layer(images).split(POSITION_BLOCK), chosen)
    torch.testing.assert_close(patches @ layer.weight.flatten(1).T + layer.bias, rows, atol=1e-5, rtol=1e-5)
    last = layer_rows(layer, layer(images[-5:]), chosen[2])
    torch.testing.assert_close(rows[-5 * 7 :], last, atol=1e-6, rtol=1e-6)
