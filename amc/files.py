"""Writes that a kill leaves whole: a file holds its old or its new content, and a log whole lines."""

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amc.errors import FileError

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` through a temporary file in the same folder, fsync and ``os.replace``.

    Raises:
        FileError: the file cannot be written; an old file at ``path`` is unchanged.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise FileError(
            f"{path}: cannot write: {error.strerror}; expected a writable file in an existing folder"
        ) from error


@contextlib.contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Make an empty folder beside ``path`` for the time of the block; what is left in it is removed then.

    Raises:
        FileError: the folder cannot be made.
    """
    folder = temporary_name(path)
    try:
        folder.mkdir()
    except OSError as error:
        raise FileError(
            f"{path}: cannot write: {error.strerror}; expected a writable file in an existing folder"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def temporary_name(path: Path) -> Path:
    """Return a new name beside ``path``, which ``is_temporary`` knows."""
    return path.with_name(f".{path.name[:160]}.{uuid.uuid4().hex}.tmp")  # names have at most 255 bytes


def is_temporary(name: str) -> bool:
    """Whether a file or folder has a temporary name, which only a killed process leaves behind."""
    return _TEMPORARY.fullmatch(name) is not None


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8 by ``atomic_write_bytes``.

    Raises:
        FileError: as ``atomic_write_bytes``.
    """
    atomic_write_bytes(path, text.encode())


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file; half a line, which a kill in mid-write leaves behind, is removed first.

    Raises:
        FileError: the file cannot be written.
    """
    try:
        with path.open("a+b") as file:
            if size := file.tell():
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line.encode() + b"\n")
    except OSError as error:
        raise FileError(
            f"{path}: cannot write: {error.strerror}; expected a writable file in an existing folder"
        ) from error


def atomic_write_json(path: str | Path, obj: Any) -> None:
    """Write ``obj`` as indented JSON by ``atomic_write_bytes``.

    Raises:
        FileError: ``obj`` holds NaN, infinity or a type that JSON lacks; or as ``atomic_write_bytes``.
    """
    try:
        text = json.dumps(obj, indent=2, sort_keys=False, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise FileError(
            f"{path}: cannot write as JSON: {error}; expected finite numbers and plain types"
        ) from error
    atomic_write_text(path, text + "\n")
