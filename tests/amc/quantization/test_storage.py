import json

import pytest
import torch

from amc import FileError
from amc.quantization import storage
from amc.quantization.description import Activation, FloatLayer, Quantization, QuantizedLayer

MADE = Quantization(
    "static_int8",
    "graph",
    network="ab" * 32,
    layers=(QuantizedLayer("first", "conv", 8, 0, "moments", "input"),),
    activations=(Activation("input", 0.125, 7),),
    left_float=(FloatLayer("last", "quantize.exclude=last"),),
    settings={"exclude": ("last",), "tolerance": None},
)
TENSORS = {
    "first.weight": torch.tensor([[1, -127]], dtype=torch.int8),
    "first.scale": torch.tensor([0.5]),
    "first.bias": torch.tensor([2**30], dtype=torch.int32),
}


@pytest.fixture
def folder(tmp_path):
    storage.save(tmp_path, MADE, TENSORS)
    return tmp_path


def changed(folder, change):
    path = folder / storage.DESCRIPTION
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_files_give_the_same_back(folder):
    found, tensors = storage.load(folder)
    assert (found.layers, found.activations, found.left_float) == (
        MADE.layers,
        MADE.activations,
        MADE.left_float,
    )
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert (folder / storage.TENSORS).read_bytes()[:1] != b"\x80"  # no pickle
    storage.remove(folder)
    with pytest.raises(FileError, match="run stage quantize first"):
        storage.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["activations"][0].update(scale=0.25), "edited by hand"),
        (lambda data: data.update(_version=9), "has _version 9; this release reads 1"),
        (lambda data: data.pop("digest"), "edited by hand"),
    ],
)
def test_a_description_that_was_edited_is_refused(folder, change, message):
    changed(folder, change)
    with pytest.raises(FileError, match=message):
        storage.load(folder)


def test_damaged_and_foreign_files_are_refused(folder):
    path = folder / storage.TENSORS
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with pytest.raises(FileError, match="truncated"):
        storage.load(folder)
    storage.save_safetensors({**TENSORS, "first.scale": torch.tensor([0.75])}, path)
    with pytest.raises(FileError, match="does not hold the tensors"):
        storage.load(folder)
    path.write_bytes(whole)
    description = folder / storage.DESCRIPTION
    description.write_text(description.read_text()[:-20])
    with pytest.raises(FileError, match="is the file truncated"):
        storage.load(folder)
    description.write_text("[1]")
    with pytest.raises(FileError, match="holds a list"):
        storage.load(folder)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"layers": (QuantizedLayer("a", "conv", 5, 0, "nearest"),)}, "has 5 bits"),
        ({"layers": (QuantizedLayer("a", "conv", 8, 0, "nearest", "x"),)}, "reads activation 'x'"),
        ({"activations": (Activation("input", -1.0, 0),)}, "expected a positive scale"),
        ({"method": "int8"}, "has method 'int8'"),
    ],
)
def test_impossible_parts_are_refused(parts, message):
    with pytest.raises(FileError, match=message):
        Quantization(**{"method": "static_int8", "placement": "graph", "network": "", **parts})
