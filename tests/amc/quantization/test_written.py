"""Files of a quantized network hold the numbers of its description, and runtimes compute the same."""

import io
import re

import numpy as np
import pytest
import torch
from torch import fx

from amc.errors import AmcError, SettingError
from amc.export import ExportSettings
from amc.export.coreml import write_quantized_coreml
from amc.export.quantized import QUANTIZED, parities, predictions, stored_otherwise
from amc.quantization.calibration import quantize
from amc.quantization.layers import IntegerLayer, IntegerSum, RoundTrip
from amc.quantization.settings import QuantizeSettings
from amc.quantization.written.explicit import explicit, for_integer_kernels, with_own_values
from amc.quantization.written.kernels import xnnpack
from amc.runtimes.litert import LITERT
from amc.runtimes.protocol import FileRuntime
from tests.networks import SHAPE, Chunked, FlattenedFromTheEnd, Residual, Separable, randomised

IMAGES = torch.randn(24, *SHAPE, generator=torch.Generator().manual_seed(3))


def quantized(make, method="static_int8", **settings):
    settings = QuantizeSettings(method, sensitivity_images=0, rounding="nearest", **settings)
    return quantize(randomised(make()), IMAGES, settings).model


@pytest.fixture(scope="module")
def static():
    return quantized(Residual)


@torch.inference_mode()
def outputs(model):
    return model(IMAGES.clone())


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("static_int8", {}),
        pytest.param("dynamic_int8", {}, marks=pytest.mark.slow),
        pytest.param("weight_only", {"weight_bits": 4, "group": 9}, marks=pytest.mark.slow),
    ],
)
def test_explicit_operators_compute_the_same(method, settings):
    model = quantized(Separable, method, **settings)
    expected = outputs(model)
    assert torch.allclose(outputs(explicit(model)), expected, rtol=1e-6, atol=1e-6)
    assert torch.allclose(outputs(explicit(model, signed=True)), expected, rtol=1e-6, atol=1e-6)


def test_a_network_that_is_no_graph_has_explicit_operators_too():
    model = quantized(FlattenedFromTheEnd)
    assert torch.allclose(outputs(explicit(model)), outputs(model), rtol=1e-5, atol=1e-5)
    with pytest.raises(AmcError, match="need outputs on grids"):
        for_integer_kernels(model)


def test_kernels_on_integers_get_grids_alone_around_layers(static):
    made = for_integer_kernels(static)
    kinds = [str(node.target) for node in made.graph.nodes]
    assert not any("relu" in kind for kind in kinds)  # the grid ends at 0 as they do
    assert torch.allclose(outputs(made), outputs(static), rtol=1e-5, atol=1e-5)
    assert sum(isinstance(each, IntegerLayer) for each in static.modules()) == 7
    integers = [each for each in made.buffers() if each.dtype == torch.int8]
    assert len(integers) == 6


def test_every_reader_gets_values_of_its_own(static):
    program = with_own_values(torch.export.export(for_integer_kernels(static), (IMAGES[:1],)))
    kinds = [node for node in program.graph.nodes if "dequantize_per_tensor" in str(node.target)]
    assert kinds
    assert {len(node.users) for node in kinds} == {1}
    with torch.inference_mode():
        assert torch.allclose(program.module()(IMAGES[:1]), static(IMAGES[:1]), rtol=1e-5, atol=1e-5)


def test_rows_that_are_rounded_once_more_change_little(static):
    expected, found = outputs(static), outputs(for_integer_kernels(static, rowwise=True))
    assert 0 < (found - expected).abs().max() < 0.02 * expected.abs().max()


def test_a_pt2_runs_without_this_project(static, tmp_path):
    kind = QUANTIZED["torch_export"]
    written = kind.write(static, SHAPE, tmp_path / "model.pt2", ExportSettings())
    assert (tmp_path / "model.pt2").stat().st_size == written.bytes
    program = torch.export.load(io.BytesIO(written.content))
    targets = {str(node.target) for node in program.graph.nodes}
    assert "quantized_decomposed.quantize_per_tensor.default" in targets
    assert not any("amc" in target for target in targets)
    (found,) = parities(written.content, kind.readers, IMAGES.numpy(), outputs(static).numpy(), None)
    assert (found.agreement, found.failure) == (100, None)
    assert found.largest < 1e-5


def fake(run):
    return FileRuntime(
        "fake", (), str, lambda: None, lambda *_: b"", lambda _, images, threads: lambda: run(images)
    )


def test_outputs_that_are_maps_are_compared_as_rows():
    flat = IMAGES.flatten(1).numpy() * 2
    (found,) = parities(b"", [fake(lambda x: 2 * x)], IMAGES.numpy(), flat, None, classifies=False)
    assert (found.failure, found.agreement, found.largest) == (None, None, 0)
    (found,) = parities(b"", [fake(lambda x: 2 * x)], IMAGES.numpy(), flat, None, classifies=True)
    assert (found.failure, found.agreement) == (None, 100)
    assert predictions(fake(lambda x: 2 * x), b"", IMAGES.numpy(), batch=5).shape == flat.shape


@pytest.mark.parametrize(
    ("run", "message"),
    [(lambda x: x[:, :1], r"got outputs of shape \(24, .*, expected"), (lambda x: x * np.nan, "got NaN or")],
)
def test_outputs_that_are_wrong_are_the_failure_of_their_runtime(run, message):
    right = fake(lambda x: x)
    flat = IMAGES.flatten(1).numpy()
    wrong, good = parities(b"", [fake(run), right], IMAGES.numpy(), flat, None, classifies=False)
    assert re.match(message, wrong.failure)
    assert "\n" not in wrong.failure
    assert (good.failure, good.largest) == (None, 0)


def compared(name, model, tmp_path):
    kind = QUANTIZED[name]
    if (reason := kind.unavailable("static_int8")) is not None:
        pytest.skip(reason)
    written = kind.write(model, SHAPE, tmp_path / f"model.{kind.suffix}", ExportSettings())
    expected = outputs(model).numpy()
    (found,) = parities(written.content, kind.readers, IMAGES.numpy(), expected, None, kind.batch)
    assert found.failure is None
    return found, np.abs(expected).max()


def test_fixed_point_sums_are_those_of_the_simulation_but_for_ties(static):
    expected, found = outputs(static), outputs(xnnpack(static))
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()
    steps = torch.arange(0, 256).float()
    left, right, out = RoundTrip(0.5, 0), RoundTrip(1.0, 0), RoundTrip(1.0, 0)
    exact = IntegerSum(left, right, out)
    one = torch.tensor(1.0)
    assert torch.equal(exact(steps * 0.5, one), (steps * 0.5 + 1).round())  # halves to even
    graph = fx.Graph()
    graph.output(graph.call_module("sum", (graph.placeholder("left"), graph.placeholder("right"))))
    made = xnnpack(fx.GraphModule({"sum": exact}, graph))
    assert torch.equal(made(steps * 0.5, one), (steps * 0.5 + 1 + 0.5).floor())  # halves up


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"weight_bits": 4}, {"weight_bits": 8, "group": 9}], ids=str)
def test_an_opset_without_the_operators_of_small_weights_is_refused(settings, tmp_path):
    model, kind = quantized(Residual, "weight_only", **settings), QUANTIZED["onnx"]
    with pytest.raises(SettingError, match="opset is 18, expected 21 or more") as error:
        kind.write(model, SHAPE, tmp_path / "model.onnx", ExportSettings(opset=18))
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
    assert kind.write(model, SHAPE, tmp_path / "model.onnx", ExportSettings(opset=21)).bytes


@pytest.mark.slow
def test_litert_computes_the_integers_that_its_roundings_give(static, tmp_path):
    kind = QUANTIZED["litert"]
    if (reason := kind.unavailable("static_int8")) is not None:
        pytest.skip(reason)
    written = kind.write(static, SHAPE, tmp_path / "model.tflite", ExportSettings())
    found = predictions(LITERT, written.content, IMAGES.numpy(), batch=1)
    assert np.abs(found - outputs(xnnpack(static)).numpy()).max() < 1e-5


@pytest.mark.slow
def test_executorch_computes_on_the_same_integers(static, tmp_path):
    found, size = compared("executorch", static, tmp_path)
    assert found.mean < 0.02 * size
    assert found.agreement >= 95


@pytest.mark.slow
def test_litert_computes_on_the_same_integers(static, tmp_path):
    found, size = compared("litert", static, tmp_path)
    assert found.mean < 0.02 * size
    assert found.agreement >= 95


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "settings"), [("static_int8", {}), ("weight_only", {"weight_bits": 4, "group": 9})]
)
def test_coreml_holds_the_same_integers(method, settings, tmp_path):
    pytest.importorskip("coremltools")
    model = quantized(Residual, method, **settings)
    size, note = write_quantized_coreml(model, SHAPE, tmp_path / "model.mlpackage")
    assert size == sum(
        each.stat().st_size for each in (tmp_path / "model.mlpackage").rglob("*") if each.is_file()
    )
    assert "of 7 layers read back; not run here" in note


def test_a_format_that_lacks_a_method_says_so():
    assert "does not hold weight_only" in QUANTIZED["executorch"].unavailable("weight_only")
    assert QUANTIZED["torch_export"].unavailable("bf16") is None


@pytest.mark.slow
@pytest.mark.parametrize("form", ["executorch", "litert"])
def test_maps_that_are_split_and_joined_are_the_same_in_every_file(form, tmp_path):
    model = quantized(Chunked)
    found, size = compared(form, model, tmp_path)
    assert found.mean < 0.02 * size


@pytest.mark.parametrize(
    ("name", "own", "told"),
    [
        ("onnx", {"method": "weight_only", "weight_bits": 4}, None),
        ("litert", {}, "layers with float outputs"),
        ("executorch", {}, "convolutions with float outputs"),
        ("torch_export", {"method": "binary"}, "a weight takes a byte"),
        ("torch_export", {"method": "weight_only", "weight_bits": 4}, "a weight takes a byte"),
        ("torch_export", {}, None),
        ("torch_export", {"method": "fp16"}, None),
    ],
)
def test_formats_that_store_weights_otherwise_are_known(name, own, told):
    found = stored_otherwise(name, QuantizeSettings(**own))
    assert found == told if told is None else told in found
