"""Bits of the weights in closed form, beside the files that exporters write."""

from dataclasses import replace
from functools import partial

import onnx
import pytest
import torch
import torch.nn.functional as functional
from onnx import TensorProto
from torch import nn

from amc.cost.exported import ExportedSize, check_excluded
from amc.cost.size import Stored, size_cost
from amc.cutting.slicing import SlicePlan, slice_model
from amc.errors import SettingError
from amc.export import ExportSettings
from amc.export.quantized import QUANTIZED
from amc.graph.trace import trace
from amc.quantization.calibration import quantize
from amc.quantization.settings import QuantizeSettings, stored_bits
from amc.quantization.simulation import program_of
from tests.networks import CLASSES, SHAPE, Chain, Dense, Residual, Separable, Shared, conv_bn, randomised
from tests.params import slow

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
        {"method": "weight_only", "bias_correction": False},
        *map(slow, ({}, {"method": "dynamic_int8"}, {"method": "fp16"})),
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
    assert ExportedSize(graph, model).stored(settings)(widths) == _held(made, tmp_path)


def _padded(kernel):
    """Return a network whose first layer pads as many zeros at both ends only with an odd ``kernel``."""
    first = nn.Conv2d(3, 8, kernel, padding="same")
    last = nn.Conv2d(8, 10, 3, padding="valid"), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(first, nn.ReLU(), *last, nn.Linear(10, CLASSES))


@pytest.mark.parametrize(
    ("make", "own", "floats"),
    [
        slow(lambda: _padded(3), {"method": "dynamic_int8"}, set()),
        pytest.param(
            lambda: _padded(4),
            {"method": "dynamic_int8"},
            {"0"},
            marks=pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
        ),
        (Shared, {"method": "weight_only", "exclude": ("twice#2", "head")}, {"twice#2", "head"}),
        slow(Chain, {"method": "binary", "exclude": ("first.0",)}, {"first.0"}),
    ],
    ids=["even padding", "uneven padding", "excluded call", "excluded end"],
)
def test_layers_that_stay_float_are_counted_as_floats(make, own, floats, tmp_path):
    model = randomised(make())
    graph = trace(model, torch.zeros(1, *SHAPE))
    settings = QuantizeSettings(sensitivity_images=0, rounding="nearest", **own)
    made = quantize(model, IMAGES, settings)
    assert {each.name for each in made.description.left_float} == floats
    assert ExportedSize(graph, model).stored(settings)(graph.dense_widths) == _held(made, tmp_path)


class Functional(nn.Module):
    """Weights that are used without a module, a layer with a parameter more, and attention."""

    def __init__(self):
        super().__init__()
        self.first, self.kernel = nn.Conv2d(3, 8, 3), nn.Parameter(torch.randn(12, 8, 3, 3))
        self.cut, self.after, self.scaled = nn.Conv2d(12, 6, 1), nn.Conv2d(6, 10, 3), Scaled(10, 8, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.offset, self.head = nn.Parameter(torch.randn(CLASSES)), nn.Parameter(torch.randn(CLASSES, 8))

    def forward(self, x):
        x = functional.conv2d(self.first(x).relu(), self.kernel).relu()
        x = self.scaled(self.after(self.cut(x).relu()).relu()).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return functional.linear(x.mean(1), self.head, self.offset)


class Scaled(nn.Conv2d):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1))

    def forward(self, x):
        return super().forward(x) * self.gain


class Tied(nn.Module):
    """Two layers with one weight, each with a bias of its own."""

    def __init__(self):
        super().__init__()
        self.stem, self.cut = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3)
        self.one, self.other, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, CLASSES)
        self.other.weight = self.one.weight

    def forward(self, x):
        x = self.cut(self.stem(x).relu()).relu().mean((2, 3))
        return self.head(self.other(self.one(x).relu()).relu())


class OtherNorms(nn.Module):
    """A norm with an activation in its module, and one of vectors."""

    def __init__(self):
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 8, 3, bias=False), NormAct(8)
        self.mixed, self.norm = nn.Linear(8, 10, bias=False), nn.BatchNorm1d(10)
        self.head = nn.Linear(10, CLASSES)

    def forward(self, x):
        return self.head(self.norm(self.mixed(self.act(self.stem(x)).mean((2, 3)))).relu())


class NormAct(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


class TwiceUnexported(nn.Module):
    """A layer that runs twice, before a norm, in a forward pass that decides on values."""

    def __init__(self):
        super().__init__()
        self.stem, self.cut = nn.Sequential(*conv_bn(3, 8)), nn.Conv2d(8, 8, 1)
        self.twice, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.cut(self.stem(x))
        x = self.twice(self.twice(x).relu())
        return self.head((x if x.sum() > -1e9 else -x).mean((2, 3)))


@pytest.mark.parametrize(
    ("make", "less", "own", "share"),
    [
        (Tied, 12 * 32, {"method": "weight_only", "weight_bits": 4}, 1),
        slow(Functional, -32, {}, 2),
        slow(OtherNorms, 0, {}, 2),
        slow(Functional, -32, {"method": "weight_only", "weight_bits": 4}, 1),
        slow(Tied, 12 * 32, {}, 2),
        slow(OtherNorms, 0, {"method": "weight_only", "weight_bits": 4}, 1),
    ],
)
def test_integers_are_those_that_the_quantization_makes(make, less, own, share, tmp_path):
    """The file has a factor of attention beside the weights, and the same scales of tied weights once."""
    model = randomised(make())
    graph = trace(model, torch.zeros(1, *SHAPE))
    settings = QuantizeSettings(sensitivity_images=0, **own)
    cost = ExportedSize(graph, model).stored(settings)
    widths = tuple(width // share for width in graph.dense_widths)
    sliced = slice_model(model, SlicePlan(graph, model).cut(widths)).eval()
    assert cost(widths) == _held(quantize(sliced, IMAGES, settings), tmp_path) + less


def test_tied_weights_are_float_once_and_their_biases_all():
    model = Tied().eval()
    graph = trace(model, torch.zeros(1, *SHAPE))
    numbers = sum(p.numel() for p in model.parameters())
    assert ExportedSize(graph, model).as_floats()(graph.dense_widths) == 32 * numbers


def test_a_layer_that_runs_twice_in_a_network_that_cannot_be_exported_is_stored_once():
    model = randomised(TwiceUnexported())
    graph = trace(model, torch.zeros(1, *SHAPE))
    settings = QuantizeSettings("weight_only", sensitivity_images=0, rounding="nearest")
    made = quantize(model, IMAGES, settings)
    assert made.description.placement == "modules"
    assert {layer.name: layer.calls for layer in graph.layers}["twice"] == 2
    held = sum(8 * each.nbytes for each in made.tensors.values())
    norm = 4 * 8 * 32  # it stays in the network
    assert ExportedSize(graph, model).stored(settings)(graph.dense_widths) == held + norm


@pytest.mark.slow
def test_a_first_call_that_stays_float_leaves_the_others_integers(tmp_path):
    model = randomised(Shared())
    graph = trace(model, torch.zeros(1, *SHAPE))
    settings = QuantizeSettings("weight_only", sensitivity_images=0, rounding="nearest")
    some = replace(settings, exclude=("twice#2",))
    second = _held(quantize(model, IMAGES, some), tmp_path)
    cost = ExportedSize(graph, model).stored
    assert second == cost(settings, {"twice"})(graph.dense_widths) == cost(some)(graph.dense_widths)
    assert second != cost(replace(settings, exclude=("twice",)))(graph.dense_widths)


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


def cost_of(graph, model, stored):
    return size_cost(graph, model, program_of(model.eval(), SHAPE)[0], stored)


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
    cost = cost_of(graph, model, {})
    for widths in (graph.dense_widths, tuple(max(1, width // 2) for width in graph.dense_widths)):
        network = slice_model(model, SlicePlan(graph, model).cut(widths))
        numbers = sum(p.numel() for p in network.parameters())
        gains = sum(network.get_submodule(norm).weight.numel() for norm in graph.norm_after.values())
        assert cost(widths) == 32 * (numbers - gains + 2 * network.norm.num_features)


@pytest.mark.parametrize(("a", "b"), [(8, 12), (3, 7)])
def test_small_network_by_hand(a, b, example):
    """Batch norms leave a bias a channel: of 3 layers, two have biases of their own, one has a norm."""
    graph = trace(Chain(), example)
    cost = partial(size_cost, graph, Chain(), program_of(Chain().eval(), SHAPE)[0])
    weights, vectors = 9 * 3 * a + 9 * a * b + b * 5, a + b + 5
    assert cost({})((a, b)) == 32 * (weights + vectors)
    assert cost({}, float_bits=16)((a, b)) == 16 * (weights + vectors)
    eight = {layer.name: Stored(8) for layer in graph.layers}
    assert cost(eight)((a, b)) == 8 * weights + 32 * 2 * vectors
    blocks = {layer.name: Stored(4, 9) for layer in graph.layers}
    by_blocks = cost(blocks)((a, b))
    assert by_blocks == 4 * weights + 32 * 2 * vectors + 32 * (3 * a + a * b) + 4 * b * 5
    others = [layer.name for layer in graph.layers[1:]]
    some = {name: Stored(8) for name in others}
    assert cost(some)((a, b)) == 8 * weights + 24 * 27 * a + 32 * 2 * vectors - 32 * a


@pytest.mark.parametrize(
    "make",
    [Shared, *map(slow, (Residual, Chain, Separable))],
    ids=lambda make: make.__name__,
)
@pytest.mark.parametrize(
    "own",
    [
        {},
        slow({"method": "weight_only", "weight_bits": 3}),
        slow({"method": "weight_only"}),
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
    stored = {each.name: Stored(bits, scales=scales) for each in made.description.layers}
    assert cost_of(graph, model, stored)(widths) == pytest.approx(held, rel=0.1)


def test_no_cost_falls_when_a_width_grows():
    model = Residual()
    graph = trace(model, torch.zeros(1, *SHAPE))
    cost = cost_of(graph, model, {layer.name: Stored(4, 8) for layer in graph.layers})
    for group in range(len(graph.groups)):
        widths = list(graph.dense_widths)
        found = []
        for width in range(1, widths[group] + 1):
            widths[group] = width
            found.append(cost(widths))
        assert found == sorted(found)
