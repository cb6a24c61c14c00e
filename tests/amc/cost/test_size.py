"""Bits of the weights in closed form, beside the files that exporters write."""

import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

from amc.cost.closed_form import Stored, size_cost
from amc.cost.exported import check_excluded, exported_size
from amc.cutting.slicing import SlicePlan, slice_model
from amc.errors import SettingError
from amc.export import ExportSettings
from amc.export.quantized import QUANTIZED
from amc.graph.trace import trace
from amc.quantization.calibration import quantize
from amc.quantization.settings import QuantizeSettings, stored_bits
from tests.networks import CLASSES, SHAPE, Chain, Dense, Residual, Separable, Shared, conv_bn, randomised

WIDTH = {TensorProto.INT4: 4, TensorProto.INT8: 8, TensorProto.INT32: 32, TensorProto.FLOAT: 32}
WIDTH |= {TensorProto.FLOAT16: 16}
IMAGES = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(0))


class PreActivation(nn.Module):
    """A block with its norm in front, norms without a gain, a norm behind a bias, and a head without one."""

    def __init__(self):
        super().__init__()
        self.stem, self.before = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.same = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bare, self.down = nn.BatchNorm2d(8, affine=False), nn.Conv2d(8, 10, 3, bias=False)
        self.behind = nn.BatchNorm2d(10, affine=False)
        self.last = nn.Sequential(nn.Conv2d(10, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), *conv_bn(6, 6))
        self.head = nn.Linear(6, CLASSES, bias=False)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.same(torch.relu(self.before(x)))
        x = torch.relu(self.behind(self.down(torch.relu(self.bare(x)))))
        return self.head(self.last(x).mean((2, 3)))


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"method": "weight_only", "bias_correction": False},
        {"method": "dynamic_int8"},
        {"method": "fp16"},
    ],
    ids=str,
)
def test_biases_that_quantization_and_folding_add_are_counted(own, tmp_path):
    """The numbers are those of the file but for the grids of activations, to the bit."""
    model = randomised(PreActivation())
    graph = trace(model, torch.zeros(1, *SHAPE))
    assert set(graph.norm_after) == {"down", "last.0", "last.3"}
    widths = [width // 2 for width in graph.dense_widths]
    sliced = slice_model(model, SlicePlan(graph, model).cut(widths)).eval()
    settings = QuantizeSettings(sensitivity_images=0, rounding="nearest", **own)
    made = quantize(sliced, IMAGES, settings)
    assert exported_size(graph, model, settings)(widths) == _held(made, tmp_path)


def _padded(kernel):
    """Return a network whose first layer pads as many zeros at both ends only with an odd ``kernel``."""
    first = nn.Conv2d(3, 8, kernel, padding="same")
    last = nn.Conv2d(8, 10, 3, padding="valid"), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(first, nn.ReLU(), *last, nn.Linear(10, CLASSES))


@pytest.mark.parametrize(
    ("make", "own", "floats"),
    [
        (lambda: _padded(3), {"method": "dynamic_int8"}, set()),
        pytest.param(
            lambda: _padded(4),
            {"method": "dynamic_int8"},
            {"0"},
            marks=pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
        ),
        (Shared, {"method": "weight_only", "exclude": ("twice#2", "head")}, {"twice#2", "head"}),
    ],
    ids=["even padding", "uneven padding", "excluded call"],
)
def test_layers_that_stay_float_are_counted_as_floats(make, own, floats, tmp_path):
    model = randomised(make())
    graph = trace(model, torch.zeros(1, *SHAPE))
    settings = QuantizeSettings(sensitivity_images=0, rounding="nearest", **own)
    made = quantize(model, IMAGES, settings)
    assert {each.name for each in made.description.left_float} == floats
    assert exported_size(graph, model, settings)(graph.dense_widths) == _held(made, tmp_path)


def test_an_excluded_name_that_no_layer_has_is_refused():
    model = Shared()
    graph = trace(model, torch.zeros(1, *SHAPE))
    check_excluded(graph, model, QuantizeSettings(exclude=("twice#2", "st*", "head")))
    check_excluded(graph, model, QuantizeSettings("none", exclude=("typo",)))
    for wrong in ("typo", "twice#3", "stem.1"):
        with pytest.raises(
            SettingError, match=f"has '{wrong}', which is no layer; layers are stem.0, twice, "
        ):
            check_excluded(graph, model, QuantizeSettings(exclude=("head", wrong)))


def _held(made, folder):
    """Return the bits of the numbers in the ONNX file of a quantized network, without those of grids."""
    content = QUANTIZED["onnx"].write(made.model, SHAPE, folder / "m.onnx", ExportSettings()).content
    tensors = onnx.load_from_string(content).graph.initializer
    held = sum(WIDTH.get(each.data_type, 0) * torch.Size(each.dims).numel() for each in tensors)
    return held - 32 * len(made.description.activations)


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
    made = quantize(sliced, IMAGES, settings)
    held = _held(made, tmp_path)
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
