"""Evaluations are remembered in a file that survives a kill.

The file is append-only JSON lines. An interrupted search starts again from its seed. All widths that it
evaluated before are looked up here, so it reaches the point of interruption in seconds and continues to the
identical result.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO, Any

from amc.errors import FileError
from amc.files import atomic_write_bytes
from amc.reading import parse_json, set_aside
from amc.result import Evaluation

_FIELDS = tuple(field.name for field in fields(Evaluation))
_SHAPE = {
    "fingerprint": str,
    "widths": [int],
    **dict.fromkeys(("top1", "loss"), (float, None)),
    **dict.fromkeys(("macs", "params"), int),
    **dict.fromkeys(("agreement", "likeness", "macs_ratio", "params_ratio", "seconds"), float),
}


class Memo:
    """Evaluations by widths, optionally backed by a file.

    Args:
        path: JSON-lines file to read and append to; None keeps evaluations in memory only.
        fingerprint: hash of everything that determines an evaluation; lines with another one are skipped.

    A damaged line is left out: the file is set aside, and its other lines are written anew.

    Raises:
        FileError: the file cannot be read or written.
    """

    def __init__(self, path: Path | None = None, fingerprint: str = "") -> None:
        self._fingerprint = fingerprint
        self._known: dict[tuple[int, ...], Evaluation] = {}
        self._file: IO[str] | None = None
        if path is not None:
            self._read(path)
        self._path = path

    def _read(self, path: Path) -> None:
        """Read a file; skip evaluations of earlier releases that were stopped early."""
        if not path.exists():
            return
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):  # a kill in mid-write leaves half a line
            with path.open("r+b") as file:
                file.truncate(len(whole))
        sound: list[bytes] = []
        damage: FileError | None = None
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            try:
                record = parse_json(line, _SHAPE, f"{path} line {number}", "was it edited?")
            except FileError as error:
                damage = error
                continue
            sound.append(line)
            self._learn(record)
        if damage is not None:
            set_aside(path, damage)
            atomic_write_bytes(path, b"".join(line + b"\n" for line in sound))

    def _learn(self, record: dict[str, Any]) -> None:
        stopped = record.get("stopped_after"), record.get("against")
        if record["fingerprint"] == self._fingerprint and stopped == (None, None):
            known = {name: record[name] for name in _FIELDS}
            evaluation = Evaluation(**{**known, "widths": tuple(record["widths"])})
            self._known[evaluation.widths] = evaluation

    def __len__(self) -> int:
        return len(self._known)

    def get(self, widths: Sequence[int]) -> Evaluation | None:
        """Return the evaluation of ``widths``, or None if they are new."""
        return self._known.get(tuple(widths))

    def put(self, evaluation: Evaluation) -> None:
        """Store an evaluation; it is on disk when this returns."""
        self._known[evaluation.widths] = evaluation
        if self._path is not None:
            if self._file is None:
                self._file = self._path.open("a")
            line = {"fingerprint": self._fingerprint, **asdict(evaluation)}
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
