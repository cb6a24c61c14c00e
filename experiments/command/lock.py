"""One process at a time in a run folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from amc.errors import AmcError

try:
    import fcntl
except ImportError:  # Windows has no flock
    fcntl = None  # type: ignore[assignment]

FILE = ".lock"
_held: set[int] = set()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of ``folder``, which is made if need be; a killed process holds nothing.

    Where the file system has no locks, or no file can be made, the work goes on without.

    Raises:
        AmcError: another process is in it.
    """
    descriptor = _take(folder)
    try:
        yield
    finally:
        if descriptor is not None:
            _held.discard(descriptor)
            os.close(descriptor)


def _take(folder: Path) -> int | None:
    """Return the descriptor that holds the lock. The file stays: removing it would let two processes in."""
    if fcntl is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        return None  # whoever writes there next says what is wrong
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise AmcError(
            f"another process works in {folder}: wait for its end, or choose another folder"
        ) from error
    except OSError:  # no locks on this file system
        os.close(descriptor)
        return None
    _held.add(descriptor)
    return descriptor


def _forget() -> None:
    """Close what a fork has copied: it would hold the lock on after a kill of the process that took it."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
