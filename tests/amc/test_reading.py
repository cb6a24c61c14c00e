"""The reader of JSON: any content gives a value of the shape, or an error of one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amc import reading
from amc.candidate.memo import Memo
from amc.errors import FileError
from amc.files import append_line
from amc.latency.prediction.table import LatencyTable
from amc.reading import DAMAGED, mismatch, parse_json, read_json, read_lines, set_aside
from amc.strategy import GroupWidth, Strategy
from experiments.command.memory.remembered import with_remembered
from experiments.run.episodes import read_episodes
from experiments.run.folder import RunFolder
from experiments.stages.measuring import correlate
from experiments.stages.measuring.trials import known
from experiments.stages.policies import choose
from tests.params import slow_but

SHAPE = {
    "name": str,
    "kept": int,
    "share": float,
    "note?": (str, None),
    "widths": [int],
    "times": {...: float},
}
GOOD = {"name": "a", "kept": 1, "share": 2, "widths": [1, 2], "times": {"x": 0.5}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def test_values_of_the_shape_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(GOOD))
    assert read_json(path, SHAPE, "do it again") == GOOD
    path.write_text(f"{json.dumps(GOOD)}\n{json.dumps({**GOOD, 'note': None})}\nhalf a li")
    assert read_lines(path, SHAPE, "do it again") == [GOOD, {**GOOD, "note": None}]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": 1}, "name is 1, expected a text"),
        ({"kept": True}, "kept is true, expected an integer"),
        ({"kept": 1.5}, "kept is 1.5, expected an integer"),
        ({"share": "x"}, "share is .*expected a number"),
        ({"note": 1}, "note is 1, expected a text"),
        ({"widths": [1, "2"]}, r"widths\[1\] is .*expected an integer"),
        ({"widths": {}}, "widths is .*expected a list"),
        ({"times": {"x": None}}, r"times\.x is null, expected a number"),
        ({"times": []}, "times is .*expected an object"),
    ],
)
def test_another_type_is_named(change: dict[str, object], told: str) -> None:
    with pytest.raises(FileError, match=rf"^HERE is damaged: {told}.*; do it again$"):
        parse_json(json.dumps({**GOOD, **change}), SHAPE, "HERE", "do it again")


def test_a_missing_field_is_named() -> None:
    assert mismatch({}, {"a": int}) == "it has no 'a'"
    assert mismatch({"a": {}}, {"a": {"b": int}}) == "a has no 'b'"
    assert mismatch({}, {"a?": int}) is None
    assert mismatch(3, ...) is None


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "nul", "NaN", "[Infinity]", "[-Infinity]", "1e999", "[1e999]", "9" * 30, "9" * 10_000, "\0",
        "[" * 100_000, "[" * 40 + "]" * 40, '{"a":' * 3_000 + "1" + "}" * 3_000, "{}}{", '"\ud800',
        "{'a': 1}", r'["\ud800"]', r'{"\udfff": 1}',
    ],
)  # fmt: skip
def test_what_is_no_bounded_json(text: str) -> None:
    with pytest.raises(FileError, match=r"^HERE is damaged") as caught:
        parse_json(text, ..., "HERE", "do it again")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_the_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"a": "x"}\n')
    with pytest.raises(FileError, match=r"x\.jsonl line 2 is damaged"):
        read_lines(path, {"a": int}, "do it again")


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("[1, 2, 3]\n")
    monkeypatch.setattr(reading, "MAX_LINE", 5)
    with pytest.raises(FileError, match=r"line 1 .*more than 5"):
        read_lines(path, ..., "do it again")
    monkeypatch.setattr(reading, "MAX_BYTES", 5)
    with pytest.raises(FileError, match="10 bytes, more than the 5"):
        read_json(path, ..., "do it again")


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("nowhere"), lambda path: None])
def test_what_is_no_file(make, tmp_path: Path) -> None:
    make(tmp_path / "x.json")
    with pytest.raises(FileError, match=r"cannot read .*x\.json"):
        read_json(tmp_path / "x.json", ..., "do it again")


def test_a_damaged_file_is_kept_beside(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("damaged")
    set_aside(tmp_path / "x.json", FileError("x.json is damaged"))
    assert [path.name for path in tmp_path.iterdir()] == ["x.json" + DAMAGED]


# --- the readers of all files of a run


def _memo(path: Path) -> None:
    Memo(path, "f").close()


READERS = {
    "strategy.json": Strategy.load,
    "search.jsonl": read_episodes,
    "evaluations.jsonl": _memo,
    "choose.jsonl": lambda path: known(path, choose.ROW, "x"),
    "correlate.jsonl": lambda path: known(path, correlate.ROW, "x"),
    "overrides.json": lambda path: with_remembered([f"run_dir={path.parent}"]),
    "stages/evaluate.json": lambda path: RunFolder(path.parent.parent).recorded("evaluate"),
    "stages/search.json": lambda path: RunFolder(path.parent.parent).recorded("search"),
    "stages/benchmark.json": lambda path: RunFolder(path.parent.parent).recorded("benchmark"),
    "table.json": LatencyTable.load,
}
OFTEN = ("strategy.json", "search.jsonl", "overrides.json", "table.json")
STRATEGY = Strategy((GroupWidth("a", 8, 4),), 0.5, 0.5, 0).to_json()
SEEDS = [
    STRATEGY,
    {"fingerprint": "f", "widths": [1], "top1": 1.0, "loss": None, "macs": 1, "params": 1, "agreement": 0.0},
    {"overrides": ["seed=1"], "stages": "stages=[train]", "unfinished": None, "signature": None},
    {"episode": 1, "phase": "explore", "return": 0.1, "widths": [1], "macs": 1, "params": 1, "top1": None},
    {"dense": {"top1": 1.0, "macs": 1, "params": 1}},
    {"runtimes": [{"backend": "x", "comparison": None}]},
    {
        "_version": 1,
        "target": {"device": "x"},
        "layers": [{"kind": {"kind": "conv"}, "points": [[1, 2, 0.5]]}],
    },
]


@st.composite
def _damaged(draw: st.DrawFn) -> bytes:
    """Content near that of a real file: a field replaced, bytes cut, inserted or changed."""
    data = dict(draw(st.sampled_from(SEEDS)))
    for key in draw(st.lists(st.sampled_from(sorted(data)), max_size=2)):
        data[key] = draw(JSON)
    content = json.dumps(data).encode() + b"\n"
    place = draw(st.integers(0, len(content)))
    match draw(st.sampled_from(["whole", "cut", "insert", "repeat", "any"])):
        case "cut":
            return content[:place]
        case "insert":
            return content[:place] + draw(st.binary(max_size=8)) + content[place:]
        case "repeat":
            return content[:place] * draw(st.integers(2, 50))
        case "any":
            return draw(st.binary(max_size=60))
    return content


@pytest.mark.parametrize("name", slow_but(OFTEN, READERS))
@given(content=_damaged())
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_content_is_read_or_refused_in_one_line(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    refusal = ""
    try:
        READERS[name](path)
    except FileError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert len(refusal) < 2_000


def test_a_line_is_appended_in_place_of_half_a_line(tmp_path):
    path = tmp_path / "log.jsonl"
    append_line(path, '{"a": 1}')
    with path.open("a") as file:
        file.write('{"a": 2, "killed')
    append_line(path, '{"a": 3}')
    assert path.read_text() == '{"a": 1}\n{"a": 3}\n'
