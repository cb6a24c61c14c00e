"""One process at a time in a run folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from filelock import FileLock, Timeout

from amc.errors import AmcError

FILE = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of ``folder``, which is made if need be.

    The operating system holds the lock, so that a killed process leaves none. The work goes on without a lock
    if the file system has no locks or the file cannot be made.

    Raises:
        AmcError: another process works in the folder.
    """
    with _held(folder):
        yield


def _held(folder: Path) -> AbstractContextManager[object]:
    # A soft lock, the mere existence of a file, would outlive a killed process.
    lock = FileLock(folder / FILE, blocking=False, thread_local=False, fallback_to_soft=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return lock.acquire()
    except Timeout as error:
        raise AmcError(
            f"another process works in {folder}: wait for its end, or choose another folder"
        ) from error
    except OSError:  # the next writer into this folder reports the cause
        return nullcontext()
