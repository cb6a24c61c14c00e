"""The jobs of ``amc -m`` that fail: each leaves a note in its folder, and the command lists the notes.

Hydra's launchers run the jobs of a multirun in this process, in others, or on other machines, and raise only
the first error. The notes, ``failed.json``, reach the command from wherever a job ran.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from amc.files import atomic_write_json
from amc.reading import read_json

FAILED = "failed.json"


def is_multirun() -> bool:
    """Whether this is one job of many."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def record_failure(folder: Path, error: str, overrides: Sequence[str]) -> None:
    """Leave a note that the job of ``folder`` failed."""
    atomic_write_json(folder / FAILED, {"error": error, "overrides": list(overrides)})


def forget_failure(folder: Path) -> None:
    """Remove the note of an earlier try."""
    (folder / FAILED).unlink(missing_ok=True)


@dataclass(frozen=True)
class Sweep:
    """The jobs that a command has started.

    Attributes:
        folder: holds the folders of the jobs.
        shared: the overrides of all jobs, as they were typed.
        before: the notes of earlier commands in ``folder``, and when they were written, in ns.
    """

    folder: Path
    shared: frozenset[str]
    before: Mapping[Path, int]

    @classmethod
    def start(cls, folder: Path, overrides: Sequence[str]) -> Sweep:
        """Remember which notes are there before any job has run."""
        return cls(folder, frozenset(overrides), _notes(folder))

    def failures(self) -> list[str]:
        """Return a line for each job that has failed since the start."""
        new = [path for path, when in _notes(self.folder).items() if self.before.get(path) != when]
        return [self._line(path) for path in sorted(new)]

    def _line(self, path: Path) -> str:
        note = read_json(path, {"error": str, "overrides": [str]}, "remove it")
        swept = [override for override in note["overrides"] if override not in self.shared]
        return f"{os.path.relpath(path.parent)} ({' '.join(swept)}): {note['error']}"


def _notes(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob(FAILED)}
