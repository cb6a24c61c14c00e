import os
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from amc.errors import FileError
from amc.models import resnet20
from amc.models.state_files import load_state_dict, save_safetensors
from tests.amc.models.helpers import one_line, same

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}
SUFFIXES = (".pth", ".pt", ".th", ".bin", ".ckpt", ".pth.tar")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_round_trip(tmp_path: Path, suffix: str, zipped: bool) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(OrderedDict(STATE), path, _use_new_zipfile_serialization=zipped)
    assert same(load_state_dict(path), STATE)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "best_prec1": 91.7},
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"net": state, "acc": 0.9},
        lambda state: {"ema": state},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}, "param_groups": []}},
        lambda state: {"epoch": 1, "state_dict": state, "callbacks": {}, "hyper_parameters": {"lr": 0.1}},
        lambda state: {"state_dict_ema": state},
        lambda state: {"model": {"depth": 50}, "ema": state},
        lambda state: {"teacher": state, "student": {key: -value for key, value in state.items()}},
        lambda state: {"model": state, "args": Namespace(lr=0.1), "best": np.float64(91.0)},
    ],
)
def test_unwraps(tmp_path: Path, wrap: Callable[[dict[str, Tensor]], dict[str, Any]]) -> None:
    path = tmp_path / "weights.pth"
    torch.save(wrap(STATE), path)
    assert same(load_state_dict(path), STATE)


@pytest.mark.parametrize("suffix", [".safetensors", *SUFFIXES])
@pytest.mark.parametrize("content", [b"\x80\x02garbage" * 20, b"<html>404</html>", b"PK\x03\x04" + bytes(50)])
def test_damaged_file(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    one_line(lambda: load_state_dict(path), str(path), f"{len(content)} bytes", "truncated")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.95])
def test_truncated_file(tmp_path: Path, kind: str, part: float) -> None:
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    state = resnet20().state_dict()
    if kind == "safetensors":
        save_safetensors(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    one_line(lambda: load_state_dict(path), str(path), "truncated")


def test_missing_empty_directory_and_suffix(tmp_path: Path) -> None:
    one_line(lambda: load_state_dict(tmp_path / "none.pth"), "none.pth", "no such file")
    one_line(lambda: load_state_dict(tmp_path), str(tmp_path), "got a directory")
    empty, other = tmp_path / "empty.pth", tmp_path / "weights.onnx"
    for path in (empty, other):
        path.touch()
    one_line(lambda: load_state_dict(empty), "got an empty file")
    one_line(lambda: load_state_dict(other), "got the suffix '.onnx'", ".safetensors")


class Executes:
    """Unpickling this runs code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("content", [nn.Linear(2, 2), {"state_dict": STATE, "args": Executes()}])
def test_pickled_object_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool, content: object
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    one_line(lambda: load_state_dict(path), "pickled Python object", "state_dict()")
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "got a list"),
        (torch.ones(1), "got a Tensor"),
        ({}, "got no tensors"),
        ({"state_dict": {}}, "got no tensors"),
        ({"weights": STATE, "epoch": 1}, "'weights'"),
        ({1: torch.ones(1)}, "entry 1"),
    ],
)
def test_not_a_state_dict(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    one_line(lambda: load_state_dict(path), str(path), message)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: torch.zeros(1).expand(2**33), "expanded"),
        (lambda: torch.eye(4).to_sparse(), "sparse_coo"),
        (lambda: torch.zeros(4, device="meta"), "on device meta"),
    ],
)
def test_tensors_that_are_not_plain_are_named(tmp_path, make, told):
    torch.save({"a.weight": torch.zeros(2), "b.weight": make()}, tmp_path / "odd.pth")
    with pytest.raises(FileError, match=rf"odd\.pth: b\.weight is .*{told}"):
        load_state_dict(tmp_path / "odd.pth")


def test_a_program_is_refused_without_a_warning_of_torch(tmp_path):
    with zipfile.ZipFile(tmp_path / "odd.pt", "w") as archive:
        archive.writestr("odd/constants.pkl", b"")
        archive.writestr("odd/data.pkl", b"")
    with pytest.raises(FileError, match="TorchScript"):
        load_state_dict(tmp_path / "odd.pt")


def test_safetensors_round_trip_with_shared_and_strided_tensors(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    tensors = {
        "base": base,
        "again": base,
        "transposed": base.t(),
        "part": base[1:],
        "count": torch.tensor(3),
    }
    tensors["parameter"] = nn.Parameter(base.clone())
    tensors["channels_last"] = torch.randn(1, 2, 3, 3).to(memory_format=torch.channels_last)
    path = tmp_path / "weights.safetensors"
    save_safetensors(tensors, path, {"model": "tiny"})
    assert same(load_state_dict(path), tensors)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"model": "tiny"}
