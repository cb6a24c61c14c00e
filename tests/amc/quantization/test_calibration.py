import numpy as np
import pytest
import torch
from torch import nn

from amc import AmcError, FileError
from amc.export import ExportSettings
from amc.export.quantized import QUANTIZED, parities
from amc.quantization import storage
from amc.quantization.calibration import quantize
from amc.quantization.layers import is_quantized
from amc.quantization.settings import QuantizeSettings
from amc.quantization.simulation import simulated
from amc.runtimes.onnxruntime import ONNXRUNTIME
from amc.scoring.scores import likeness
from tests.amc.quantization.test_program import DecidesOnValues, NamedLikeOperators
from tests.networks import (
    CLASSES,
    SHAPE,
    Chain,
    Grouped,
    Headed,
    Residual,
    SecretScale,
    Separable,
    Shared,
    SqueezeExcite,
    Transposed,
    conv_bn,
    randomised,
)
from tests.params import slow

# Blocks of colour: on noise, pooled outputs are nearly constant, and their error says little.
DRAWN = torch.Generator().manual_seed(2)
IMAGES = torch.randn(48, 3, 3, 3, generator=DRAWN).repeat_interleave(4, 2).repeat_interleave(4, 3)
FAST = {"sensitivity_images": 0}


def error(model, found):
    with torch.inference_mode():
        return 0.0 - likeness(found(IMAGES.clone()), model(IMAGES.clone()))


class ReadsTable(Headed):
    """A bias of channels that two layers compute from a table of parameters, as in Swin V2."""

    def __init__(self):
        super().__init__(8)
        self.stem, self.table = conv_bn(3, 8), nn.Parameter(torch.zeros(1, 4))
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 8)

    def features(self, x):
        return self.stem(x) + self.second(self.first(self.table).relu())[:, :, None, None]


@pytest.mark.parametrize(
    "make",
    [
        *(Separable, ReadsTable),
        *map(slow, (DecidesOnValues, NamedLikeOperators, Residual, Chain, Grouped, SqueezeExcite)),
    ],
)
def test_eight_bits_change_little_and_the_file_gives_the_same_network_back(make, tmp_path):
    model = randomised(make())
    made = quantize(model, IMAGES, QuantizeSettings(**FAST))
    assert is_quantized(made.model)
    assert error(model, made.model) < 0.02
    storage.save(tmp_path, made.description, made.tensors)
    again = simulated(model, SHAPE, *storage.load(tmp_path))
    with torch.inference_mode():
        assert torch.equal(again(IMAGES.clone()), made.model(IMAGES.clone()))


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "static_int8"},
        *(
            pytest.param(own, marks=pytest.mark.slow)
            for own in (
                {"method": "weight_only", "weight_bits": 3, "group": 8},
                {"method": "static_int8", "weight_bits": 4},
                {"method": "dynamic_int8"},
                {"method": "weight_only"},
                {"method": "fp16"},
            )
        ),
    ],
    ids=str,
)
def test_onnxruntime_computes_what_the_simulation_computes(settings, tmp_path):
    model = randomised(Residual())
    made = quantize(model, IMAGES, QuantizeSettings(**FAST, **settings)).model
    content = QUANTIZED["onnx"].write(made, SHAPE, tmp_path / "model.onnx", ExportSettings()).content
    assert (tmp_path / "model.onnx").read_bytes() == content
    images = IMAGES[torch.arange(130) % 48]  # one whole batch, and a part of one
    with torch.inference_mode():
        expected = torch.cat([made(part.clone()) for part in images.split(100)]).numpy()
    labels = expected.argmax(1)
    (found,) = parities(content, [ONNXRUNTIME], images.numpy(), expected, labels)
    assert found.failure is None
    assert found.agreement >= 99
    assert found.top1 == found.agreement
    assert found.mean < 0.01 * np.abs(expected).max()
    if settings["method"] == "static_int8":  # every integer is the same; float32 outputs may differ
        assert (found.agreement, found.largest < 1e-5) == (100, True)


@pytest.mark.parametrize("method", ["weight_only", "dynamic_int8"])
def test_a_forward_pass_finds_the_attributes_of_a_layer_in_its_place(method):
    model = randomised(DecidesOnValues())
    made = quantize(model, IMAGES, QuantizeSettings(method, **FAST)).model
    assert error(model, made) < 0.02
    assert made.first.kernel_size == (3, 3)
    with pytest.raises(AttributeError, match="'Conv2d' object has no attribute 'nothing'"):
        _ = made.first.nothing


class Routed(nn.Module):
    """Decides on values which of two layers runs, and which of three each image takes."""

    def __init__(self):
        super().__init__()
        self.bright, self.dark = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.low, self.high, self.never = (nn.Conv2d(8, 8, 1, groups=each) for each in (1, 4, 1))
        self.second, self.head = nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        level = x.mean((1, 2, 3))
        maps = (self.bright(x) if x.std() > 0.9 else self.dark(x)).relu()
        found, means = torch.zeros_like(maps), torch.zeros_like(maps[..., 0, 0])
        for layer, taken in ((self.low, level <= 0.5), (self.high, level > 0.5), (self.never, level > 99)):
            found[taken] = layer(maps[taken])
        found = found.relu().mean((2, 3))
        means[level > 0.5] = self.second(found[level > 0.5])
        return self.head(found + means)


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"ranges": "minmax", "rounding": "nearest", "bias_correction": False},
        {"method": "weight_only"},
        {"method": "dynamic_int8"},
    ],
    ids=str,
)
def test_layers_that_run_are_those_of_the_calibration_images(own):
    """Random images are bright; the first batch of these dark ones has no image that `high` takes."""
    model, images = randomised(Routed()), 0.3 * torch.cat([IMAGES, IMAGES])[:60]
    images[55:] += 1
    made = quantize(model, images, QuantizeSettings(**FAST, **own))
    told = {each.name: each.reason for each in made.description.left_float}
    assert told == dict.fromkeys(
        ("bright", "never"), "it does not run on the calibration images, or not as a module"
    )
    assert {each.name for each in made.description.layers} == {"dark", "low", "high", "second", "head"}
    again = simulated(model, SHAPE, made.description, made.tensors)
    with torch.inference_mode():
        for some in (images, images[:50]):
            assert 0.0 - likeness(made.model(some.clone()), model(some.clone())) < 0.02
            assert torch.equal(again(some.clone()), made.model(some.clone()))


class HeadFirst(nn.Module):
    """Its classifier is defined first, and its forward pass cannot be exported."""

    def __init__(self):
        super().__init__()
        self.head, self.first = nn.Linear(8, CLASSES), nn.Conv2d(3, 8, 3)
        self.second, self.third = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = self.second(self.first(x).relu()).relu()
        if x.sum() > 0:
            x = self.third(x).relu()
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("make", "exclude", "bits"),
    [
        (Chain, (), {"first.0": 8, "second": 1, "head": 8}),
        (Chain, ("first.0", "head"), {"second": 1}),
        (HeadFirst, (), {"head": 8, "first": 8, "second": 1, "third": 1}),
        (HeadFirst, ("head",), {"first": 8, "second": 1, "third": 1}),
    ],
)
def test_binary_weights_have_eight_bits_where_the_network_begins_and_ends(make, exclude, bits):
    settings = QuantizeSettings("binary", exclude=exclude, rounding="nearest", **FAST)
    made = quantize(randomised(make()), IMAGES, settings).description
    assert {each.name: each.bits for each in made.layers} == bits


@pytest.mark.slow
def test_moments_and_groups_beat_nearest_at_four_bits():
    model = randomised(Residual())
    common = {**FAST, "method": "weight_only", "weight_bits": 4}
    nearest, moments, grouped = (
        error(model, quantize(model, IMAGES, QuantizeSettings(**common, **own)).model)
        for own in ({"rounding": "nearest", "bias_correction": False}, {}, {"group": 9})
    )
    assert moments < 0.5 * nearest
    assert grouped < moments


@pytest.mark.parametrize("rounding", ["moments", "nearest"])
def test_a_layer_of_very_many_inputs_keeps_its_mean_outputs(rounding):
    model = randomised(nn.Sequential(nn.Flatten(), nn.Linear(3 * 46 * 46, 4, bias=False)))
    images = 1 + torch.randn(60, 3, 46, 46, generator=torch.Generator().manual_seed(0))
    settings = QuantizeSettings("weight_only", weight_bits=3, rounding=rounding, **FAST)
    made = quantize(model, images, settings)
    (layer,) = made.description.layers
    assert layer.rounding == "nearest"
    assert len(made.notes) == (rounding == "moments")
    with torch.inference_mode():
        errors = made.model(images) - model(images)
    assert errors.mean(0).abs().max() < 1e-3 < 0.1 < errors.std(0).min()


@pytest.mark.slow
def test_layers_stay_float_by_name_and_by_tolerance():
    model = randomised(Residual())
    made = quantize(model, IMAGES, QuantizeSettings(exclude=("head", "same*"), sensitivity_images=8))
    kept = {each.name: each.reason for each in made.description.left_float}
    assert kept == {
        "head": "quantize.exclude=head",
        "same.0.0": "quantize.exclude=same*",
        "same.1": "quantize.exclude=same*",
    }
    assert [each.layer for each in made.sensitivity] == [each.name for each in made.description.layers]
    errors = {each.layer: each.errors[2] for each in made.sensitivity}
    assert all(each.errors[2] > each.errors[8] for each in made.sensitivity)
    middle = sorted(errors.values())[1]
    settings = QuantizeSettings(
        method="weight_only", weight_bits=2, exclude=("head", "same*"), sensitivity_images=8, tolerance=middle
    )
    quantized = {each.name for each in quantize(model, IMAGES, settings).description.layers}
    assert quantized == {name for name, own in errors.items() if own <= middle}


@pytest.mark.parametrize(
    ("make", "exclude", "left"),
    [
        (Shared, ("tw*", "twice", "st*"), {"twice": "tw*", "twice#2": "tw*", "stem.0": "st*"}),
        (Shared, ("twice#2",), {"twice#2": "twice#2"}),
        (Transposed, ("up.0", "head"), {"head": "head", "up.0": None, "each": None}),
    ],
)
def test_every_pattern_that_matches_a_layer_is_used(make, exclude, left):
    settings = QuantizeSettings("weight_only", rounding="nearest", exclude=exclude, **FAST)
    made = quantize(randomised(make()), IMAGES, settings).description
    told = {each.name: each.reason for each in made.left_float}
    assert told.keys() == left.keys()
    assert all(told[name] == f"quantize.exclude={own}" for name, own in left.items() if own is not None)
    assert not left.keys() & {each.name for each in made.layers}


class Tied(Headed):
    """Two layers with one weight, each with a bias of its own."""

    def __init__(self):
        super().__init__(8)
        self.stem, self.one, self.other = conv_bn(3, 8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.other.weight = self.one.weight

    def features(self, x):
        return self.other(self.one(self.stem(x)).relu())


@pytest.mark.slow
def test_a_weight_that_two_layers_hold_is_excluded_by_either_name():
    model = randomised(Tied())
    made = quantize(model, IMAGES, QuantizeSettings("weight_only", **FAST)).description
    assert made.left_float == ()
    for name in ("one", "other"):
        made = quantize(model, IMAGES, QuantizeSettings("weight_only", exclude=(name,), **FAST)).description
        assert len(made.left_float) == 2
        assert {each.name for each in made.layers} == {"stem.0", "head"}


@pytest.mark.slow
def test_a_layer_whose_input_is_no_activation_stays_float_only_with_static_ranges():
    model = randomised(ReadsTable())
    left = quantize(model, IMAGES, QuantizeSettings(**FAST)).description.left_float
    assert [(each.name, "reads a tensor of the network itself" in each.reason) for each in left] == [
        ("first", True)
    ]
    made = quantize(model, IMAGES, QuantizeSettings("weight_only", **FAST)).description
    assert "first" in {each.name for each in made.layers}


@pytest.mark.parametrize(
    ("images", "settings", "message"),
    [
        (IMAGES[:1], {}, "got 1 calibration image, expected at least 2"),
        (torch.ones(4, *SHAPE), {}, "the calibration images are constant"),
        (IMAGES, {"exclude": ("nothing",)}, "'nothing', which is no layer; layers are first.0"),
        (IMAGES, {"exclude": ("*",)}, "no layer can be quantized"),
        (IMAGES, {"tolerance": 0.1}, "quantize.sensitivity_images=0 measures no layer"),
        (IMAGES, {"tolerance": 1e-9, "sensitivity_images": 4}, "quantize.tolerance=1e-09, but each layer"),
    ],
)
def test_what_cannot_be_quantized_is_refused_in_one_line(images, settings, message):
    with pytest.raises(AmcError, match=message) as caught:
        quantize(randomised(Chain()), images, QuantizeSettings(**{**FAST, **settings}))
    assert "\n" not in str(caught.value)


def test_constant_images_are_refused_whatever_the_layers_are_called():
    with pytest.raises(AmcError, match="the calibration images are constant"):
        quantize(randomised(NamedLikeOperators()), torch.ones(4, *SHAPE), QuantizeSettings(**FAST))


@pytest.mark.parametrize("method", ["fp16", "bf16"])
def test_a_network_that_does_not_run_in_16_bit_floats_is_refused(method):
    assert quantize(randomised(Chain()), IMAGES, QuantizeSettings(method)).model is not None
    with pytest.raises(AmcError, match=f"SecretScale does not run in {method}: .* no buffer") as caught:
        quantize(randomised(SecretScale()), IMAGES, QuantizeSettings(method))
    assert "\n" not in str(caught.value)


def test_a_network_that_overflows_in_fp16_is_told_of_bf16():
    """Only the last image overflows; where the float32 network is not finite either, nothing is told."""
    model, images = randomised(Chain()), torch.cat([IMAGES, IMAGES[:3]]) / 1e3
    images[-1] *= 1e9
    with pytest.raises(AmcError, match=r"Chain gives NaN or infinity in fp16.* exceed 65504.*=bf16 holds"):
        quantize(model, images, QuantizeSettings("fp16"))
    made = quantize(model, images, QuantizeSettings("bf16"))
    with torch.inference_mode():
        assert made.model(images).isfinite().all()
    with torch.no_grad():
        model.head.bias[0] = float("inf")
    assert quantize(model, IMAGES, QuantizeSettings("fp16")).model is not None


def test_nan_names_the_activation():
    model = randomised(Chain())
    with torch.no_grad():
        model.second.bias[0] = float("nan")
    settings = QuantizeSettings(**FAST, rounding="nearest", bias_correction=False)
    with pytest.raises(AmcError, match="activation 'second' is NaN"):
        quantize(model, IMAGES, settings)


def test_a_channel_of_zeros_and_a_huge_bias_survive():
    model = randomised(Chain())
    with torch.no_grad():
        model.second.weight[0] = 0
        model.second.weight[1] *= 1e-12
        model.second.bias[:2] = 5.0
    made = quantize(model, IMAGES, QuantizeSettings(**FAST))
    assert made.notes == ("layer 'second' has 1 channels whose weights are all zero",)
    assert error(model, made.model) < 0.02


def test_another_network_is_refused():
    made = quantize(randomised(Chain()), IMAGES, QuantizeSettings(**FAST))
    with pytest.raises(FileError, match="of another network or other weights"):
        simulated(randomised(Chain(), seed=1), SHAPE, made.description, made.tensors)


@pytest.mark.slow
def test_the_network_is_left_as_it_is():
    model = randomised(Residual())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantize(model, IMAGES, QuantizeSettings(sensitivity_images=4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model(IMAGES[:1]).shape == (1, CLASSES)
