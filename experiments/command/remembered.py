"""The overrides that a run folder remembers, so that ``amc run_dir=RUN`` continues the same job.

They are in ``overrides.json``, which a refused command leaves as it was. Without ``stages=`` such a command
runs the stages of the last command if that was interrupted, otherwise those of the first command.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from amc.errors import AmcError, FileError
from amc.files import atomic_write_bytes, atomic_write_json

FILE = "overrides.json"
_PATHS = ("model.checkpoint", "model.start", "data.root", "strategy")
"""Overrides that name files. They are stored as absolute paths, so that a run continues from any folder."""


def key_of(override: str) -> str:
    """Return the key of an override, without Hydra's prefixes ``+`` and ``~``."""
    return override.split("=", 1)[0].lstrip("+~")


def with_remembered(arguments: Sequence[str]) -> list[str]:
    """Add the remembered overrides of the run folder that ``arguments`` name; given ones take precedence.

    Raises:
        FileError: ``overrides.json`` is damaged.
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
    """Store the overrides of a command; restore the former ones if the command ends with an `AmcError`.

    Args:
        folder: the run folder.
        overrides: those of the command.
        keep: store them in any case: the user has not typed the overrides of one job of many, and continues
            it by naming its folder.

    Raises:
        FileError: ``overrides.json`` is damaged.
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
    """The contents of ``overrides.json``.

    Attributes:
        overrides: all but ``run_dir`` and ``stages``.
        stages: the override ``stages=`` of the first command.
        unfinished: that of the command that runs now or was interrupted.
    """

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
        raise FileError(
            f"{path} is damaged ({error}); remove it and give the run's overrides again"
        ) from error
    return memory
