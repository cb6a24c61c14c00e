"""What lies in a run folder before a command writes: links and pipes are refused, temporary files removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from amc.errors import FileError
from amc.files import is_temporary

MOST_ENTRIES = 100_000
_BEFORE_CHECK = frozenset({"amc.log", "overrides.json", ".lock", "multirun.yaml"})
_WANDB = "wandb"
"""A folder of another program, which makes links of its own."""


def check_links(folder: Path) -> None:
    """Refuse a run folder with a symbolic link in it: what a command writes would land elsewhere.

    Pipes, sockets and devices are refused, too: a command that opens one would wait for ever.

    Raises:
        FileError: names the link or the like; or the folder holds far more than a run.
    """
    for entry in _entries(folder):
        name = os.path.relpath(entry.path, folder)
        if entry.is_symlink():
            raise FileError(
                f"run_dir={folder} holds a symbolic link, {name}: "
                "a command would write elsewhere; put a copy of the file in its place"
            )
        if not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
            raise FileError(
                f"run_dir={folder} holds a pipe, a socket or a device, {name}; "
                "expected files and folders: remove it"
            )


def remove_temporary(folder: Path) -> None:
    """Remove temporary files and folders of killed commands; no other process works in the folder."""
    for entry in list(_entries(folder)):
        if not is_temporary(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        elif entry.is_file(follow_symlinks=False):
            os.unlink(entry.path)


def absent(folder: Path) -> list[Path]:
    """Return the folders that making ``folder`` makes, the innermost first; none if it exists."""
    return [each for each in (folder, *folder.parents) if not each.exists()]


def remove_unused(made: Sequence[Path]) -> None:
    """Remove a new folder that holds only what every command writes before its settings are checked.

    Args:
        made: the folder, and those above it that were made with it; one of them that another command has
            begun to use stays.
    """
    found = list(_entries(made[0]))
    if any(entry.name not in _BEFORE_CHECK and not entry.is_dir() for entry in found):
        return
    with suppress(OSError):  # another command has come, or the folder may not be changed
        for entry in reversed(found):
            os.rmdir(entry.path) if entry.is_dir() else os.unlink(entry.path)
        for folder in made:
            os.rmdir(folder)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield all that lies in a folder, the upper levels first; none if it does not exist."""
    waiting, count = [str(folder)], 0
    while waiting:
        try:
            found = sorted(os.scandir(waiting.pop(0)), key=lambda entry: entry.name)
        except OSError:  # the folder does not exist, or may not be read: the first writer reports the cause
            continue
        for entry in found:
            count += 1
            if count > MOST_ENTRIES:
                raise FileError(
                    f"run_dir={folder} holds more than {MOST_ENTRIES:,} files; expected the folder of a run"
                )
            yield entry
            if entry.is_dir(follow_symlinks=False) and _is_ours(entry.name):
                waiting.append(entry.path)


def _is_ours(name: str) -> bool:
    """Whether a command may write into a folder of this name in a run folder."""
    return name == ".hydra" or not (name.startswith(".") or name == _WANDB)
