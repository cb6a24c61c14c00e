"""Evaluations are remembered in a file that survives a kill.

The file is append-only JSON lines. An interrupted search starts again from its seed. All widths that it
evaluated before are looked up here, so it reaches the point of interruption in seconds and continues to the
identical result.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO

from amc.errors import FileError
from amc.result import Evaluation


class Memo:
    """Evaluations by widths, optionally backed by a file.

    Args:
        path: JSON-lines file to read and append to; None keeps evaluations in memory only.
        fingerprint: hash of everything that determines an evaluation; lines with another one are skipped.

    Raises:
        FileError: a line of the file is malformed.
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
        for number, line in enumerate(whole.decode().splitlines(), start=1):
            try:
                record = json.loads(line)
                stopped = record.pop("stopped_after", None), record.pop("against", None)
                if record.pop("fingerprint") == self._fingerprint and stopped == (None, None):
                    record["widths"] = tuple(record["widths"])
                    evaluation = Evaluation(**record)
                    self._known[evaluation.widths] = evaluation
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise FileError(
                    f"{path} line {number} is no evaluation ({error!r}); was it edited? Remove that line"
                ) from error

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
