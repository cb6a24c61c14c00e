import sys

import pytest
import torch

from experiments.parity import __main__ as command
from experiments.parity.measure import CELLS, measure
from experiments.parity.networks import NETWORKS, images, pruned
from experiments.parity.table import table
from tests.experiments.helpers import read_lines


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["parity", *arguments])
    command.main()


def row(**facts):
    defaults = {
        "network": "resnet20", "format": "onnx", "precision": "static_int8", "seed": 0, "bytes": 2048,
        "note": "", "runtime": "onnxruntime", "agreement": 100.0, "largest": 0.5, "mean": 0.1, "scale": 10.0,
        "failure": None,
    }  # fmt: skip
    return {**defaults, **facts}


@pytest.mark.slow
def test_networks_are_pruned_and_tell_classes_apart():
    network = NETWORKS["resnet20"]
    model, same = pruned(network, 0), pruned(network, 0)
    assert model.linear.in_features < 64
    with torch.inference_mode():
        found = model(images(network, 40, 1))
    assert (found.argmax(1) == torch.arange(40) % 10).float().mean() > 0.5
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))


def test_the_table_says_what_differs():
    page = table(
        [row(), row(runtime="openvino", agreement=98.0), row(format="litert", reason="no room")], ["About."]
    )
    assert "| onnx | onnxruntime | 100.0 | 1e-02 | 5e-02 | 2 |  |" in page
    assert "below 99.5" in page
    assert "no room" in page
    detector = table([row(network="ssdlite_mobilenet_v3")], [])
    assert "| onnx | onnxruntime |  | 1e-02 | 5e-02 | 2 |  |" in detector


def test_unknown_names_are_refused(monkeypatch, capsys, tmp_path):
    for option, name in (("--networks", "resnet21"), ("--formats", "onnx/int9")):
        with pytest.raises(SystemExit) as stopped:
            run(monkeypatch, "--out", str(tmp_path / "P.md"), option, name)
        assert stopped.value.code == 2
        assert name in capsys.readouterr().err
    assert len(CELLS) == 11


@pytest.mark.slow
def test_a_failure_is_a_row(monkeypatch):
    monkeypatch.setattr("experiments.parity.measure._rows", lambda *_: 1 / 0)
    (found,) = measure("resnet20", "onnx/float32", 0)
    assert found["reason"] == "ZeroDivisionError: division by zero"


@pytest.mark.slow
def test_a_row_is_measured_once(monkeypatch, tmp_path):
    job = ("--out", str(tmp_path / "P.md"), "--networks", "resnet20", "--formats", "onnx/static_int8")
    run(monkeypatch, *job)
    (line,) = read_lines(tmp_path / "P.jsonl")
    assert {each["runtime"] for each in line["rows"]} >= {"onnxruntime"}
    assert line["rows"][0]["agreement"] > 90
    page = (tmp_path / "P.md").read_text()
    monkeypatch.setattr(command, "measure", None)
    run(monkeypatch, *job)
    assert (tmp_path / "P.md").read_text() == page
