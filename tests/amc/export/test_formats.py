"""The formats beside ONNX: written, checked, whole or not at all."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from amc.errors import AmcError
from amc.export import FORMATS, ExportSettings, get_format
from amc.export.torch_export import load_torch_export
from amc.runtimes.executorch import executorch_bytes, load_executorch
from amc.runtimes.litert import load_litert
from amc.runtimes.openvino import load_openvino
from amc.runtimes.reference import check_agreement

SHAPE = (3, 12, 12)
AVAILABLE = [
    pytest.param(name, marks=pytest.mark.slow) if name == "coreml" else name  # a slow import
    for name, kind in FORMATS.items()
    if kind.unavailable() is None
]
CHECKED = [name for name in AVAILABLE if isinstance(name, str)]
LOAD = {
    "executorch": lambda path: lambda images: load_executorch(path.read_bytes(), images, 1),
    "litert": lambda path: lambda images: load_litert(path.read_bytes(), images, 1),
    "openvino": lambda path: lambda images: load_openvino(path, images, 1),
    "torch_export": lambda path: lambda images: load_torch_export(path.read_bytes(), images, 1),
}


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


@pytest.mark.parametrize("name", AVAILABLE)
def test_the_file_is_found_again_and_computes_the_same(name, model, tmp_path, capfd):
    kind = FORMATS[name]
    path = tmp_path / kind.file
    for _ in range(2):  # the second time it is there already
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
        found = LOAD[name](path)(images.numpy())()
        np.testing.assert_allclose(np.asarray(found), model.eval()(images).detach(), atol=1e-5)


@pytest.mark.parametrize("name", CHECKED)
def test_disagreement_leaves_no_file(name, model, tmp_path):
    nn.init.constant_(model[-1].weight, torch.nan)
    with pytest.raises(AmcError, match="differs from eager") as error:
        FORMATS[name].write(model, SHAPE, tmp_path / FORMATS[name].file, ExportSettings())
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", AVAILABLE)
def test_what_does_not_convert_is_told_in_one_line(name, model, tmp_path):
    with pytest.raises(AmcError, match=r"Sequential does not .* \(1, 12, 12\)") as error:
        FORMATS[name].write(model, (1, 12, 12), tmp_path / FORMATS[name].file, ExportSettings())
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(bool(FORMATS["executorch"].unavailable()), reason="executorch is not installed")
def test_a_program_keeps_the_bytes_that_it_points_into(model):
    content = executorch_bytes(model, SHAPE)
    references = sys.getrefcount(content)
    run = load_executorch(content, torch.zeros(1, *SHAPE).numpy(), 1)
    assert sys.getrefcount(content) > references
    assert run().shape == (1, 5)


def test_an_absent_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert FORMATS["coreml"].unavailable() == "not installed: coremltools"


def test_an_unknown_format_names_the_close_one():
    with pytest.raises(AmcError, match=r"expected some of onnx, .*; did you mean litert\?"):
        get_format("litrt")


def test_logits_of_another_shape_do_not_agree():
    with pytest.raises(AmcError, match="the file differs"):
        check_agreement(np.zeros((2, 5)), np.zeros((2, 4), np.float32), 1.0, "the file")
