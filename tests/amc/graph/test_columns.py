"""Columns of a least-squares fit: the inputs of sampled outputs, and weights in the same order."""

import pytest
import torch
from torch import nn

from amc.graph.columns import columns, taps_of, weight_of_columns, weight_to_columns
from amc.graph.unfolding import layer_patches, layer_rows
from tests.amc.graph.test_unfolding import SameConv

LAYERS = [
    nn.Conv2d(4, 6, 3, padding=1),
    nn.Conv2d(4, 6, (3, 2), stride=2, padding=(2, 1), dilation=2),
    nn.Conv2d(4, 6, 1),
    nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"),
    nn.Conv2d(4, 6, 3, padding="same"),
    nn.Conv2d(4, 6, 3, padding=1, groups=2),
    nn.Conv2d(4, 8, 5, padding=2, groups=4),
    SameConv(4, 6, 3, stride=2),
    nn.Linear(7, 6),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_columns_times_weight_are_the_outputs(layer, layout):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, 4, 8, 7, generator=generator).contiguous(memory_format=layout)
    outputs = layer(inputs)
    chosen = torch.tensor([0, 5, 2, 3])
    found = columns(layer, inputs, taps_of(layer, inputs, chosen))
    weight = weight_to_columns(layer)
    assert found.shape == (*weight.shape[:2], 3 * len(chosen))
    product = (found.mT @ weight).transpose(0, 1).flatten(1) + layer.bias
    torch.testing.assert_close(product, layer_rows(layer, outputs, chosen), atol=1e-5, rtol=1e-5)
    assert torch.equal(weight_of_columns(layer, weight), layer.weight)


@torch.no_grad()
def test_the_taps_of_a_dense_layer_serve_the_layer_with_fewer_channels():
    dense, pruned = nn.Conv2d(8, 6, 3, stride=2, padding=1), nn.Conv2d(3, 2, 3, stride=2, padding=1)
    inputs = torch.randn(2, 8, 9, 9)
    chosen = torch.tensor([0, 7, 24])
    found = columns(pruned, inputs[:, :3], taps_of(dense, inputs, chosen))
    patches = layer_patches(pruned, inputs[:, :3], chosen)
    by_tap = patches.view(-1, 3, 9).transpose(1, 2).flatten(1)
    assert torch.equal(found[0].mT, by_tap)
