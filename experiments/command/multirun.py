"""Folders and failures of a command, of one job or (``amc -m``) of many.

Hydra's launchers run the jobs of a multirun in this process, in others, or on other machines, and raise only
the first error. Here a job that fails leaves ``failed.json`` in its folder, and the command tells them all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write

from amc.errors import AmcError
from amc.files import atomic_write_json
from experiments.command.lock import locked
from experiments.command.remembered import key_of

FAILED = "failed.json"


class Refused(BaseException):
    """Carries an ``AmcError`` out of Hydra's callbacks, which make a warning of any ``Exception``."""


@dataclass
class _Command:
    """What this process holds; of many jobs their folder, what they share, and failures of earlier ones."""

    locks: ExitStack = field(default_factory=ExitStack)
    sweep: Path | None = None
    shared: frozenset[str] = frozenset()
    before: dict[Path, int] = field(default_factory=dict)


_command = _Command()


@contextmanager
def command() -> Iterator[None]:
    """Do a command; its folders are given back at the end, however it ends."""
    global _command
    _command = _Command()
    with _command.locks:
        yield


class Folders(Callback):
    """Takes the folder of a command before Hydra writes into it."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Take a run folder."""
        _hold(Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Take a sweep folder, and have all jobs find it whatever is swept and wherever they run."""
        if any(key_of(override) == "run_dir" for override in config.hydra.overrides.task):
            raise Refused(
                "run_dir is given for many jobs; expected hydra.sweep.dir=DIR, a folder for them all"
            )
        sweep = Path(os.path.abspath(config.hydra.sweep.dir))
        _hold(sweep)
        _command.sweep, _command.before = sweep, _records(sweep)
        _command.shared = frozenset(config.hydra.overrides.task)
        quoted = str(sweep).replace("\\", "\\\\").replace("'", "\\'")
        with read_write(config), open_dict(config):
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")


def _hold(folder: Path) -> None:
    try:
        _command.locks.enter_context(locked(folder))
    except AmcError as error:
        raise Refused(str(error)) from error


def is_multirun() -> bool:
    """Whether this is one job of many."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def has_many() -> bool:
    """Whether the command of this process has started many jobs."""
    return _command.sweep is not None


def record_failure(folder: Path, error: str, overrides: Sequence[str]) -> None:
    """Leave a note that the job of ``folder`` failed."""
    atomic_write_json(folder / FAILED, {"error": error, "overrides": list(overrides)})


def forget_failure(folder: Path) -> None:
    """Remove the note of an earlier try."""
    (folder / FAILED).unlink(missing_ok=True)


def failures() -> list[str]:
    """Return a line for every job that has failed since this process started them."""
    if _command.sweep is None:
        return []
    new = [path for path, when in _records(_command.sweep).items() if _command.before.get(path) != when]
    return [_line(path) for path in sorted(new)]


def _records(sweep: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sweep.rglob(FAILED)}


def _line(path: Path) -> str:
    note = json.loads(path.read_text())
    swept = [override for override in note["overrides"] if override not in _command.shared]
    return f"{os.path.relpath(path.parent)} ({' '.join(swept)}): {note['error']}"
