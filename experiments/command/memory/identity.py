"""The identity of a run folder during a command: when what it remembers is written, and when it stays.

With it goes Hydra's folder ``.hydra``. A new folder gets its identity before any other file. A refused
command leaves the identity as it was; so does one that fails before it has changed a result. A first command
keeps it as soon as there is anything to go on with. A plan changes no identity: it may give a new folder its
settings, but no stages.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from amc.errors import AmcError
from amc.files import atomic_write_bytes, atomic_write_text, is_temporary
from experiments.command.memory.content import (
    FILE,
    Memory,
    memory_of,
    only_plans,
    read_memory,
    results_in,
)
from experiments.command.overrides import (
    key_of,
)

HYDRA = ".hydra"
_CACHES = ("evaluations.jsonl", ".ckpt.safetensors")
"""Files that know by themselves which job they are about."""


def begin(
    folder: Path, overrides: Sequence[str], options: Sequence[str] = (), *, paths: Collection[str]
) -> bool:
    """Give a new folder its identity before anything else is in it; return whether it is new.

    Args:
        folder: the run folder.
        overrides: those of the command, which have been checked (``check_overrides``).
        options: Hydra's options that say which configuration the command has.
        paths: as for `remembering`.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError:  # a refused command has just removed the empty folder above
        folder.mkdir(parents=True, exist_ok=True)
    if any(not is_temporary(entry.name) for entry in folder.iterdir()):
        return False
    memory = memory_of(overrides, options, paths)
    temporary = folder / f".{FILE}.{uuid.uuid4().hex}.tmp"
    temporary.write_bytes(memory.text().encode())
    try:
        os.link(temporary, folder / FILE)
    except FileExistsError:  # another command was faster
        return False
    except OSError:  # a file system without links
        os.replace(temporary, folder / FILE)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def forget(folder: Path, key: str) -> None:
    """Remove a setting from what a run folder remembers, because its results no longer follow from it.

    Raises:
        FileError: ``overrides.json`` is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return
    memory = read_memory(path)
    kept = [override for override in memory.overrides if key_of(override) != key]
    if memory.signed and kept != memory.overrides:
        atomic_write_text(path, replace(memory, overrides=kept).text())


class Identity:
    """The identity of a folder during one command; see `remembering`."""

    def __init__(
        self, folder: Path, memory: Memory, hydra: Mapping[str, str], *, new: bool, plans: bool
    ) -> None:
        self._folder, self._memory, self._hydra = folder, memory, hydra
        self._new = new or not (folder / FILE).exists()
        self._stays = plans and not self._new
        files = [folder / FILE, *(folder / HYDRA / name for name in hydra)]
        self._before = {path: path.read_bytes() if path.exists() else None for path in files}
        self._results = _state(folder)
        self._accepted = False

    @property
    def is_new(self) -> bool:
        """Whether this is the first command of the folder."""
        return self._new

    def accept(self) -> None:
        """Write the identity, once the command has been checked; a plan leaves that of others alone."""
        if self._stays:
            return
        self._accepted = True
        atomic_write_text(self._folder / FILE, self._memory.text())
        for name, text in self._hydra.items():
            (self._folder / HYDRA).mkdir(exist_ok=True)
            atomic_write_text(self._folder / HYDRA / name, text)

    def finish(self) -> None:
        """Forget that the command is unfinished."""
        if self._stays:
            return
        # `forget` may have changed the file since
        memory = read_memory(self._folder / FILE) if self._accepted else self._memory
        atomic_write_text(self._folder / FILE, replace(memory, unfinished=None).text())

    def restore(self) -> None:
        """Undo ``accept`` if the command has changed no result.

        A new folder that holds anything of the job keeps its identity: no command goes on there without it.
        """
        if _state(self._folder) != self._results or (self._new and results_in(self._folder)):
            return
        for path, content in self._before.items():
            if content is None or self._new:
                path.unlink(missing_ok=True)
            elif not path.exists() or path.read_bytes() != content:
                atomic_write_bytes(path, content)


@contextmanager
def remembering(
    folder: Path,
    overrides: Sequence[str],
    options: Sequence[str] = (),
    *,
    paths: Collection[str],
    keep: bool = False,
    new: bool = False,
    hydra: Mapping[str, str] | None = None,
) -> Iterator[Identity]:
    """Store the overrides of a command once it is accepted; see `Identity`.

    Args:
        folder: the run folder.
        overrides: those of the command.
        options: Hydra's options that say which configuration it has.
        paths: keys whose values name files. They are stored as absolute paths, so that a run continues from
            any folder.
        keep: store them in any case, unless there are results of others: the user has not typed the overrides
            of one job of many, and continues it by naming its folder.
        new: the folder has its identity from this very command.
        hydra: names and texts of the files in ``.hydra``.

    Raises:
        FileError: ``overrides.json`` is damaged.
    """
    path = folder / FILE
    memory = memory_of(overrides, options, paths)
    if path.exists() and not new:
        memory = replace(memory, stages=read_memory(path).stages)
    identity = Identity(folder, memory, hydra or {}, new=new, plans=any(map(only_plans, overrides)))
    keep = keep and not results_in(folder)
    if keep:
        identity.accept()
    try:
        yield identity
    except AmcError:
        if not keep:
            identity.restore()
        raise
    identity.finish()


def _state(folder: Path) -> dict[str, int]:
    """Return the results of a folder and of those below it, and when each was written, in ns."""
    found = [folder / name for name in results_in(folder) if not name.endswith(_CACHES)]
    inner = [path for place in found if place.is_dir() for path in place.glob("**/*") if path.is_file()]
    return {str(path): path.stat().st_mtime_ns for path in (*found, *inner) if path.is_file()}
