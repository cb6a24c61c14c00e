"""What a run folder remembers of the command line, so that ``amc run_dir=RUN`` speaks of the same job.

A refused command changes nothing in ``overrides.json``. A plain ``amc run_dir=RUN`` goes on with
the stages of a command that was cut off, else with those of the first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from amc.errors import AmcError
from amc.files import atomic_write_bytes, atomic_write_json

FILE = "overrides.json"
_PATHS = ("model.checkpoint", "model.start", "data.root", "strategy")
"""Overrides that name files: remembered absolutely, so that a run can be asked from any folder."""


def key_of(override: str) -> str:
    """Return the key of ``key=value``, without Hydra's + and ~."""
    return override.split("=", 1)[0].lstrip("+~")


def with_remembered(arguments: Sequence[str]) -> list[str]:
    """Put what the named run folder remembers beside the given overrides, which win over it.

    Raises:
        AmcError: the file of the run folder is damaged.
    """
    place = next((i for i, a in enumerate(arguments) if a.startswith("run_dir=")), None)
    if place is None:
        return list(arguments)
    given = {key_of(argument) for argument in arguments if "=" in argument}
    memory = _read(Path(arguments[place].split("=", 1)[1]) / FILE)
    stages = memory.unfinished or memory.stages
    old = [o for o in (*memory.overrides, *([stages] if stages else [])) if key_of(o) not in given]
    return [*arguments[: place + 1], *old, *arguments[place + 1 :]]


@contextmanager
def remembering(folder: Path, overrides: Sequence[str], *, keep: bool = False) -> Iterator[None]:
    """Keep the overrides of a command for as long as it runs, and after it if it was not refused.

    Args:
        folder: the run folder.
        overrides: of the command.
        keep: even if it was refused: nobody has typed the overrides of one job of many.
    """
    path = folder / FILE
    before = path.read_bytes() if path.exists() else None
    stages = next((o for o in overrides if key_of(o) == "stages"), None)
    first = _read(path).stages if before is not None else stages
    kept = [_absolute(o) for o in overrides if key_of(o) not in ("run_dir", "stages")]
    _write(path, _Memory(kept, first, unfinished=stages))
    try:
        yield
    except AmcError:
        if keep:
            raise
        if before is None:
            path.unlink()
        else:
            atomic_write_bytes(path, before)
        raise
    _write(path, _Memory(kept, first))


@dataclass(frozen=True)
class _Memory:
    """Overrides but ``run_dir`` and ``stages``; the stages of the first and of a cut-off command."""

    overrides: list[str] = field(default_factory=list)
    stages: str | None = None
    unfinished: str | None = None


def _absolute(override: str) -> str:
    key, _, value = override.partition("=")
    if key in _PATHS and value and Path(value).exists():
        return f"{key}={Path(value).resolve()}"
    return override


def _write(path: Path, memory: _Memory) -> None:
    atomic_write_json(path, asdict(memory))


def _read(path: Path) -> _Memory:
    if not path.is_file():
        return _Memory()
    try:
        memory = _Memory(**json.loads(path.read_text()))
        assert all(isinstance(item, str) for item in memory.overrides)
    except (ValueError, TypeError, AssertionError) as error:
        raise AmcError(
            f"{path} is damaged ({error}); remove it and give the run's overrides again"
        ) from error
    return memory
