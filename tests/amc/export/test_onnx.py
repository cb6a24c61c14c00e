import logging

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from amc.errors import AmcError, SettingError
from amc.export import ExportSettings, export_onnx
from amc.export.exported import write_checked
from amc.runtimes.onnx_file import checked_bytes
from amc.runtimes.reference import eager_logits


class Residual(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.branch = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.norm(self.stem(images)))
        return self.head((features + self.branch(features)).mean((2, 3)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = Residual()
    network.norm.running_mean.normal_()
    return network


def test_file_holds_its_weights_and_metadata_and_takes_any_batch(model, tmp_path, capfd, caplog):
    state = torch.random.get_rng_state()
    settings = ExportSettings(name="residual", widths={"stem": "8"})
    result = export_onnx(model, (3, 16, 16), tmp_path / "net.onnx", settings)

    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    assert [record for record in caplog.records if record.levelno >= logging.INFO] == []
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    proto = onnx.load(result.path)
    assert {entry.key: entry.value for entry in proto.metadata_props} == {
        "name": "residual",
        "width.stem": "8",
    }
    assert result.bytes == result.path.stat().st_size > 4 * sum(p.numel() for p in model.parameters())

    session = onnxruntime.InferenceSession(result.path, providers=["CPUExecutionProvider"])
    model.eval()
    for batch in (1, 5):
        images = torch.randn(batch, 3, 16, 16)
        (logits,) = session.run(["logits"], {"input": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model(images).detach(), rtol=1e-4, atol=1e-5)


def test_disagreement_leaves_no_file(model, tmp_path):
    with pytest.raises(AmcError, match=r"differs from eager by .* expected at most") as error:
        export_onnx(model, (3, 16, 16), tmp_path / "net.onnx", ExportSettings(tolerance=0.0))
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_opset_without_conversion_is_refused(model, tmp_path, capfd):
    with pytest.raises(AmcError, match="expected opset 13"):
        export_onnx(model, (3, 16, 16), tmp_path / "net.onnx", ExportSettings(opset=13))
    assert capfd.readouterr().err == ""


def test_a_wrong_input_shape_is_refused_in_one_line(model, tmp_path):
    with pytest.raises(AmcError, match=r"Residual does not export to ONNX .* \(1, 16, 16\)") as error:
        export_onnx(model, (1, 16, 16), tmp_path / "net.onnx", ExportSettings())
    assert "\n" not in str(error.value)


class Counting(nn.Module):
    """Reads the number of images as a plain number."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.stem(images)
        return self.head(maps.reshape(len(maps), 4, -1).mean(2))


def test_a_network_that_fixes_the_number_of_images_is_refused_in_one_line(tmp_path):
    with pytest.raises(AmcError, match=r"the graph takes 2 images at a time.*len\(x\)") as error:
        export_onnx(Counting(), (3, 8, 8), tmp_path / "net.onnx", ExportSettings())
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fails", ["load", "run"])
def test_a_file_that_does_not_run_is_refused_in_one_line(fails, model, tmp_path):
    def run():
        raise RuntimeError("[ONNXRuntimeError] : 2\nmore")

    def load(*_):
        return run() if fails == "load" else run

    with pytest.raises(AmcError, match=r"the onnx file was made, but does not run: \[ONNX") as error:
        write_checked("onnx", b"x", load, model, (3, 8, 8), tmp_path / "x", batch=None, tolerance=1)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("tolerance", value) for value in (-1.0, float("nan"), float("inf"))),
        *(("opset", value) for value in (0, -3, 99)),
    ],
)
def test_impossible_settings_of_an_export(field, value):
    with pytest.raises(SettingError, match=rf"export\.{field} is {value:g}; expected"):
        ExportSettings(**{field: value})


def test_a_graph_that_onnx_refuses_is_one_line():
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("NoOperator", ["x"], ["y"])], "net", [value], [])
    with pytest.raises(AmcError, match=r"the ONNX graph is not valid: .*NoOperator") as error:
        checked_bytes(onnx.helper.make_model(graph))
    assert "\n" not in str(error.value)


def test_a_network_with_several_outputs_is_refused_in_one_line():
    class Two(nn.Module):
        def forward(self, x):
            return {"a": x, "b": x}

    with pytest.raises(AmcError, match="Two returns a dict, expected one tensor"):
        eager_logits(Two(), torch.zeros(1, 3, 4, 4))


class Guarded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.stem(images if images.sum() > 0 else -images).mean((2, 3))


def test_a_failed_export_tells_the_cause_and_not_the_step_of_the_exporter(tmp_path):
    with pytest.raises(AmcError, match="likely cause: Could not guard on data-dependent") as error:
        export_onnx(Guarded(), (3, 8, 8), tmp_path / "net.onnx", ExportSettings())
    assert "\x1b" not in str(error.value)
