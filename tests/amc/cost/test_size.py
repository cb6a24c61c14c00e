"""Bits of the weights in closed form, beside the files that exporters write."""

import onnx
import pytest
import torch
from onnx import TensorProto

from amc.cost.closed_form import Stored, size_cost
from amc.cutting.slicing import SlicePlan, slice_model
from amc.export import ExportSettings
from amc.export.quantized import QUANTIZED
from amc.graph.trace import trace
from amc.quantization.calibration import quantize
from amc.quantization.settings import QuantizeSettings, stored_bits
from tests.networks import SHAPE, Chain, Dense, Residual, Separable, Shared, randomised

WIDTH = {TensorProto.INT4: 4, TensorProto.INT8: 8, TensorProto.INT32: 32, TensorProto.FLOAT: 32}
IMAGES = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(0))


def test_a_norm_that_no_layer_precedes_keeps_its_statistics(example):
    """Norms after layers leave a bias; the one after the concatenation keeps four numbers a channel."""
    model = Dense()
    graph = trace(model, example)
    assert "norm" not in graph.norm_after.values()
    cost = size_cost(graph, model, {})
    for widths in (graph.dense_widths, tuple(max(1, width // 2) for width in graph.dense_widths)):
        network = slice_model(model, SlicePlan(graph, model).cut(widths))
        numbers = sum(p.numel() for p in network.parameters())
        gains = sum(network.get_submodule(norm).weight.numel() for norm in graph.norm_after.values())
        assert cost(widths) == 32 * (numbers - gains + 2 * network.norm.num_features)


@pytest.mark.parametrize(("a", "b"), [(8, 12), (3, 7)])
def test_small_network_by_hand(a, b, example):
    """Batch norms leave a bias a channel: of 3 layers, two have biases of their own, one has a norm."""
    graph = trace(Chain(), example)
    weights, vectors = 9 * 3 * a + 9 * a * b + b * 5, a + b + 5
    assert size_cost(graph, Chain(), {})((a, b)) == 32 * (weights + vectors)
    assert size_cost(graph, Chain(), {}, float_bits=16)((a, b)) == 16 * (weights + vectors)
    eight = {layer.name: Stored(8) for layer in graph.layers}
    assert size_cost(graph, Chain(), eight)((a, b)) == 8 * weights + 32 * 2 * vectors
    blocks = {layer.name: Stored(4, 9) for layer in graph.layers}
    by_blocks = size_cost(graph, Chain(), blocks)((a, b))
    assert by_blocks == 4 * weights + 32 * 2 * vectors + 32 * (3 * a + a * b) + 4 * b * 5
    others = [layer.name for layer in graph.layers[1:]]
    some = {name: Stored(8) for name in others}
    assert size_cost(graph, Chain(), some)((a, b)) == 8 * weights + 24 * 27 * a + 32 * 2 * vectors - 32 * a


@pytest.mark.parametrize(
    "make",
    [Residual, Shared, *(pytest.param(make, marks=pytest.mark.slow) for make in (Chain, Separable))],
    ids=lambda make: make.__name__,
)
@pytest.mark.parametrize(
    "own",
    [
        {},
        {"method": "weight_only", "weight_bits": 3},
        pytest.param({"method": "weight_only"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_it_is_what_the_file_holds(make, own, tmp_path):
    model = randomised(make())
    graph = trace(model, torch.zeros(1, *SHAPE))
    widths = [max(1, width // 2) for width in graph.dense_widths]
    sliced = slice_model(model, SlicePlan(graph, model).cut(widths))
    settings = QuantizeSettings(sensitivity_images=0, **own)
    quantized = quantize(sliced, IMAGES, settings).model
    content = QUANTIZED["onnx"].write(quantized, SHAPE, tmp_path / "m.onnx", ExportSettings()).content
    tensors = onnx.load_from_string(content).graph.initializer
    held = sum(WIDTH.get(each.data_type, 0) * torch.Size(each.dims).numel() for each in tensors)
    bits, scales = stored_bits(settings, settings.weight_bits), 2 if settings.form == "static_int8" else 1
    stored = {layer.name: Stored(bits, scales=scales) for layer in graph.layers}
    assert size_cost(graph, model, stored)(widths) == pytest.approx(held, rel=0.1)


def test_no_cost_falls_when_a_width_grows():
    model = Residual()
    graph = trace(model, torch.zeros(1, *SHAPE))
    cost = size_cost(graph, model, {layer.name: Stored(4, 8) for layer in graph.layers})
    for group in range(len(graph.groups)):
        widths = list(graph.dense_widths)
        found = []
        for width in range(1, widths[group] + 1):
            widths[group] = width
            found.append(cost(widths))
        assert found == sorted(found)
