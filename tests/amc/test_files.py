import json
import math
import os
from pathlib import Path

import pytest

from amc.files import atomic_write_bytes, atomic_write_json, atomic_write_text
from tests.amc.models.helpers import one_line


def test_json_layout(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    atomic_write_json(path, {"b": 1, "a": ["é"]})
    assert path.read_text(encoding="utf-8") == '{\n  "b": 1,\n  "a": [\n    "é"\n  ]\n}\n'
    assert json.loads(path.read_bytes()) == {"b": 1, "a": ["é"]}


@pytest.mark.parametrize("bad", [math.nan, math.inf, object()])
def test_json_refuses_and_keeps_the_old_file(tmp_path: Path, bad: object) -> None:
    path = tmp_path / "result.json"
    atomic_write_text(path, "old")
    one_line(lambda: atomic_write_json(path, {"value": bad}), str(path), "cannot write as JSON")
    assert path.read_text() == "old"


def test_interrupted_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.bin"
    atomic_write_bytes(path, b"old")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    for text in ("one", "two"):
        atomic_write_text(path, text)
    assert path.read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_targets(tmp_path: Path) -> None:
    one_line(lambda: atomic_write_text(tmp_path / "no" / "file", ""), "cannot write", "existing folder")
    one_line(lambda: atomic_write_text(tmp_path, ""), str(tmp_path), "cannot write")
    assert list(tmp_path.iterdir()) == []
