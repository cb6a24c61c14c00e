"""Every format: the file is written and checked, whole or not at all."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from amc.errors import AmcError
from amc.export import FORMATS, ExportSettings, get_format, torch_export
from amc.export.quantized import quantized_refusal
from amc.runtimes import executorch, litert, openvino
from amc.runtimes.reference import cause, check_agreement

SHAPE = (3, 12, 12)
SLOW = {"executorch", "litert", "coreml"}
"""Their converters take 5 to 10 seconds to import."""
AVAILABLE = [
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
    for name, kind in FORMATS.items()
    if kind.unavailable() is None
]
LOAD = {
    "executorch": lambda path, images: executorch.load(path.read_bytes(), images, 1),
    "litert": lambda path, images: litert.load(path.read_bytes(), images, 1),
    "openvino": lambda path, images: openvino.load(path, images, 1),
    "torch_export": lambda path, images: torch_export.load(path.read_bytes(), images, 1),
}


def test_only_openvino_is_told_to_read_another_file():
    assert "OpenVINO reads the onnx file" in quantized_refusal("openvino", "static_int8")
    told = quantized_refusal("my.own", "static_int8")
    assert told == (
        "no my.own file of a quantized network: onnx, torch_export, executorch, litert, coreml hold one"
    )


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def leave_an_old_file(path: Path, name: str) -> None:
    """Put something where the file goes: Core ML's is a folder."""
    if name == "coreml":
        path.mkdir()
    else:
        path.write_text("old")


@pytest.mark.parametrize("name", AVAILABLE)
def test_the_file_replaces_an_old_one_and_computes_the_same(name, model, tmp_path, capfd):
    kind = FORMATS[name]
    path = tmp_path / kind.file
    leave_an_old_file(path, name)
    exported = kind.write(model, SHAPE, path, ExportSettings())
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    assert exported.format == name
    assert exported.path == path
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) == exported.bytes > 4 * 5 * 8
    assert model.training
    if name == "coreml":
        assert (exported.max_abs_difference, exported.note[:16]) == (None, "not checked here")
    else:
        assert exported.max_abs_difference < 1e-5
    if name in LOAD:
        images = torch.rand(exported.batch or 7, *SHAPE)
        found = LOAD[name](path, images.numpy())()
        np.testing.assert_allclose(np.asarray(found), model.eval()(images).detach(), atol=1e-5)


# The function that writes torch_export writes executorch and litert too; test_onnx.py has onnx.
@pytest.mark.parametrize("name", [name for name in ("openvino", "torch_export") if name in AVAILABLE])
def test_disagreement_leaves_no_file(name, model, tmp_path):
    nn.init.constant_(model[-1].weight, torch.nan)
    with pytest.raises(AmcError, match="differs from eager") as error:
        FORMATS[name].write(model, SHAPE, tmp_path / FORMATS[name].file, ExportSettings())
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", AVAILABLE)
def test_a_failed_conversion_is_one_line(name, model, tmp_path):
    with pytest.raises(AmcError, match=r"Sequential does not .* \(1, 12, 12\)") as error:
        FORMATS[name].write(model, (1, 12, 12), tmp_path / FORMATS[name].file, ExportSettings())
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


class Determinant(nn.Module):
    """A network with an operator that OpenVINO lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(torch.linalg.det(images))


@pytest.mark.skipif(bool(FORMATS["openvino"].unavailable()), reason="openvino is not installed")
def test_an_operator_that_openvino_lacks_is_named(tmp_path):
    with pytest.raises(AmcError, match=r"does not convert to OpenVINO .* operations: Det") as error:
        FORMATS["openvino"].write(Determinant(), (3, 4, 4), tmp_path / "model.xml", ExportSettings())
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_the_cause_is_told_of_a_node_that_openvino_does_not_convert():
    message = (
        "Exception from src/inference/src/cpp/core.cpp:134:\n"
        "FrontEnd API failed with OpConversionFailure: [ONNX Frontend] Conversion failed for:\n"
        "-- Add-20 with a message:\n"
        "Check 'equal' failed at src/frontends/onnx/frontend/src/utils.cpp:12:\n"
        "Argument shapes are inconsistent.\n"
    )
    assert cause(RuntimeError(message)) == "Argument shapes are inconsistent."


@pytest.mark.slow
@pytest.mark.skipif(bool(FORMATS["executorch"].unavailable()), reason="executorch is not installed")
def test_a_program_keeps_the_bytes_that_it_points_into(model):
    content = executorch.convert(model, SHAPE, 1)
    references = sys.getrefcount(content)
    run = executorch.load(content, torch.zeros(1, *SHAPE).numpy(), 1)
    assert sys.getrefcount(content) > references
    assert run().shape == (1, 5)


def test_an_absent_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert FORMATS["coreml"].unavailable() == "not installed: coremltools"


def test_an_unknown_format_names_the_close_one():
    with pytest.raises(AmcError, match=r"expected one of onnx, .*; did you mean 'litert'\?"):
        get_format("litrt")


def test_logits_of_another_shape_do_not_agree():
    with pytest.raises(AmcError, match="the file differs"):
        check_agreement(np.zeros((2, 5)), np.zeros((2, 4), np.float32), 1.0, "the file")


def test_import_stays_light():
    heavy = {"torch", "onnx", "onnxruntime", "openvino", "executorch", "litert_torch", "coremltools", "numpy"}
    code = f"import sys, amc.export; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
