"""The overrides that a run folder remembers, so that ``amc run_dir=RUN`` continues the same job.

They are in ``overrides.json``, which a refused command leaves as it was. Without ``stages=`` such a command
runs the stages of the last command if that was interrupted, otherwise those of the first command.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from amc.errors import AmcError, FileError
from amc.files import atomic_write_bytes, atomic_write_json
from experiments.command.overrides import absolute, key_of, text_of

FILE = "overrides.json"
_RESULTS = ("dense.safetensors", "search.jsonl", "strategy.json")
"""Files of a run folder that another job would overwrite."""


def with_remembered(arguments: Sequence[str]) -> list[str]:
    """Add the remembered overrides of the run folder that ``arguments`` name; given ones take precedence.

    Raises:
        FileError: ``overrides.json`` is damaged, or missing in a folder that holds results.
    """
    places = [i for i, a in enumerate(arguments) if "=" in a and key_of(a) == "run_dir"]
    path = text_of(arguments[places[-1]]) if places else None
    if path is None:
        return list(arguments)
    given = {key_of(argument) for argument in arguments if "=" in argument}
    memory = _remembered(Path(path))
    stages = memory.unfinished or memory.stages
    old = [o for o in (*memory.overrides, *([stages] if stages else [])) if key_of(o) not in given]
    return [*arguments[: places[-1] + 1], *old, *arguments[places[-1] + 1 :]]


@contextmanager
def remembering(
    folder: Path, overrides: Sequence[str], *, paths: Collection[str], keep: bool = False
) -> Iterator[None]:
    """Store the overrides of a command; restore the former ones if the command ends with an `AmcError`.

    A first command that has left results is remembered in any case.

    Args:
        folder: the run folder.
        overrides: those of the command.
        paths: keys whose values name files. They are stored as absolute paths, so that a run continues from
            any folder.
        keep: store them in any case: the user has not typed the overrides of one job of many, and continues
            it by naming its folder.

    Raises:
        FileError: ``overrides.json`` is damaged.
    """
    path = folder / FILE
    before = path.read_bytes() if path.exists() else None
    stages = next((o for o in overrides if key_of(o) == "stages"), None)
    first = _read(path).stages if before is not None else stages
    kept = [absolute(o, paths) for o in overrides if key_of(o) not in ("run_dir", "stages")]
    _write(path, _Memory(kept, first, unfinished=stages))
    try:
        yield
    except AmcError:
        if keep or (before is None and _results(folder)):
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


def _remembered(folder: Path) -> _Memory:
    """Read the memory of a folder; a new folder has none.

    Raises:
        FileError: it is damaged, or missing although there are results.
    """
    if not (folder / FILE).exists() and (found := _results(folder)):
        raise FileError(
            f"run_dir={folder} holds {found[0]} of an unknown job, as {FILE} is missing; expected the folder "
            "of a run, or a new one"
        )
    return _read(folder / FILE)


def _results(folder: Path) -> list[str]:
    return [name for name in _RESULTS if (folder / name).exists()]


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
