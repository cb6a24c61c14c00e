"""The reader of JSON and csv files: bounded in size and depth, checked against a shape, each fault one line.

A shape is written as the value that is expected, with types in place of values: ``{"kept": int}`` for an
object with at least this key, ``{"note?": str}`` for a key that may be missing, ``[int]`` for a list, ``{...:
float}`` for an object with any keys, a tuple for alternatives, and ``...`` for anything. ``float`` takes
integers, too. Numbers must be finite.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from amc.errors import FileError

_log = logging.getLogger(__name__)

MAX_BYTES = 512 * 2**20
"""Largest file."""
MAX_LINE = 16 * 2**20
"""Longest line of a JSON-lines file, in bytes."""
MAX_DEPTH = 32
MAX_INTEGER = 2**63
DAMAGED = ".damaged"
"""Suffix of a file that was set aside."""

Shape = Any


def read_json(path: Path, shape: Shape, remedy: str) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        shape: what it must hold.
        remedy: what the user can do about a damaged file, for the message.

    Raises:
        FileError: the file is missing, unreadable, too large, no JSON, or of another shape.
    """
    return _parsed(_bytes(path), shape, str(path), remedy)


def read_lines(path: Path, shape: Shape, remedy: str) -> list[Any]:
    """Read a JSON-lines file, without a last line that is half written.

    Raises:
        FileError: as ``read_json``; the message names the line.
    """
    return list(each_line(_bytes(path), shape, str(path), remedy))


def each_line(content: bytes, shape: Shape, where: str, remedy: str) -> Iterator[Any]:
    """Yield the values of JSON lines; what follows the last end of a line is left out.

    Raises:
        FileError: a line is too long, no JSON, or of another shape.
    """
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        place = f"{where} line {number}"
        if len(line) > MAX_LINE:
            _refuse(place, f"the line has {len(line)} bytes, more than {MAX_LINE}", remedy)
        yield _parsed(line, shape, place, remedy)


def parse_json(text: str | bytes, shape: Shape, where: str, remedy: str) -> Any:
    """Read JSON that came from elsewhere, such as the answer of another host; see ``read_json``.

    Raises:
        FileError: it is no JSON, or of another shape.
    """
    return _parsed(text if isinstance(text, bytes) else text.encode(errors="replace"), shape, where, remedy)


def read_csv(path: Path, columns: Sequence[str], remedy: str) -> list[tuple[int, tuple[str, ...]]]:
    """Read columns of a csv file in UTF-8 whose first line names them.

    Args:
        path: the file.
        columns: names of the columns; others are left out.
        remedy: as for ``read_json``.

    Returns:
        the number of every line, from 1, and its values of the columns; at least one line.

    Raises:
        FileError: the file is missing, unreadable, too large or no csv, lacks a column or a value, or is
            empty; the message names the line.
    """
    try:
        lines = csv.DictReader(io.StringIO(_bytes(path).decode("utf-8-sig"), newline=""), strict=True)
        head = lines.fieldnames or ()
        if missing := [name for name in columns if name not in head]:
            _refuse(str(path), f"its first line names no column {missing[0]!r}", remedy)
        found = []
        for line in lines:
            values = tuple(line[name] for name in columns)
            if not all(values):
                _refuse(f"{path}:{lines.line_num}", "a value is missing", remedy)
            found.append((lines.line_num, values))
    except (UnicodeDecodeError, csv.Error) as error:
        _refuse(str(path), _short(error), remedy)
    if not found:
        _refuse(str(path), "it has no line but the first", remedy)
    return found


def set_aside(path: Path, error: Exception) -> None:
    """Rename a damaged file that is made again, so that nothing of it is lost; log a line about it."""
    aside = path.with_name(path.name + DAMAGED)
    try:
        os.replace(path, aside)
    except OSError as failure:
        raise FileError(f"{path} is damaged and cannot be renamed: {failure.strerror}") from error
    _log.warning("%s; it is kept as %s and made again", error, aside.name)


def _bytes(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise FileNotFoundError(2, "No such file")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise FileError(f"{path} has {size} bytes, more than the {MAX_BYTES} that are read")
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from error


def _parsed(content: bytes, shape: Shape, where: str, remedy: str) -> Any:
    def no_number(text: str) -> NoReturn:
        raise ValueError(f"{text} is no finite number")

    try:
        value = json.loads(content.decode(), parse_constant=no_number)
        _check_values(value, MAX_DEPTH)
    except RecursionError:
        _refuse(where, "it is nested too deeply", remedy)
    except ValueError as error:  # no UTF-8, no JSON, or a number of thousands of digits
        hint = "; is the file truncated?" if isinstance(error, json.JSONDecodeError) else ""
        _refuse(where, f"it is not JSON ({_short(error)}){hint}", remedy)
    if (fault := mismatch(value, shape)) is not None:
        _refuse(where, fault, remedy)
    return value


def _refuse(where: str, fault: str, remedy: str) -> NoReturn:
    raise FileError(f"{where} is damaged: {fault}; {remedy}") from None


def _short(error: object) -> str:
    return " ".join(str(error).split())[:120]


def _check_values(value: Any, depth: int) -> None:
    if isinstance(value, list | dict):
        if depth == 0:
            raise RecursionError
        for each in (*value, *value.values()) if isinstance(value, dict) else value:
            _check_values(each, depth - 1)
    elif isinstance(value, str):
        value.encode()  # half of a character, which no file can hold, is a ValueError
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a number is too large")
    elif isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise ValueError("a number is too large")


def mismatch(value: Any, shape: Shape, place: str = "") -> str | None:
    """Return how a value differs from a shape, or None if it fits."""
    if shape is ...:
        return None
    if isinstance(shape, tuple):
        faults = [mismatch(value, each, place) for each in shape]
        return None if None in faults else faults[0]
    if isinstance(shape, Mapping):
        return _object_mismatch(value, shape, place)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _expected(place, "a list", value)
        faults = [mismatch(each, shape[0], f"{place}[{i}]") for i, each in enumerate(value)]
        return next((fault for fault in faults if fault is not None), None)
    if shape is None:
        return None if value is None else _expected(place, "null", value)
    kinds = (int, float) if shape is float else shape
    if isinstance(value, kinds) and (shape is bool or not isinstance(value, bool)):
        return None
    return _expected(place, _NAMES.get(shape, "another type"), value)


_NAMES = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}


def _object_mismatch(value: Any, shape: Mapping[Any, Shape], place: str) -> str | None:
    if not isinstance(value, dict):
        return _expected(place, "an object", value)
    for key, inner in shape.items():
        if key is ...:
            named = [*value]
        else:
            name = key.removesuffix("?")
            if name not in value and not key.endswith("?"):
                return f"{_named(place)}has no {name!r}"
            named = [name] if name in value else []
        for each in named:
            if (fault := mismatch(value[each], inner, f"{place}.{each}" if place else each)) is not None:
                return fault
    return None


def _named(place: str) -> str:
    return f"{place[:80]} " if place else "it "


def _expected(place: str, what: str, value: Any) -> str:
    return f"{_named(place)}is {_short(json.dumps(value))[:40]}, expected {what}"
