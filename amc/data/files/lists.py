"""Lists of image files: csv files with the columns ``path`` and ``label``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from amc.errors import FileError
from amc.reading import read_csv

SUFFIX = ".csv"
_REMEDY = "expected lines path,label under a first line path,label; paths are relative to the file"


def read_list(file: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """Read a list of images.

    Args:
        file: the csv file; relative paths in it begin at its folder.

    Returns:
        the classes, sorted, by value if all are whole numbers; and the path and the class number of every
        image.

    Raises:
        FileError: the list is damaged or names an image twice, or an image is missing.
    """
    lines = read_csv(file, ("path", "label"), _REMEDY)
    _check_once(file, lines)
    labels = {label for _, (_, label) in lines}
    numbers = all(label.isdecimal() for label in labels)
    classes = sorted(labels, key=lambda label: (int(label), label) if numbers else (0, label))
    place = {name: number for number, name in enumerate(classes)}
    samples = [(str(file.parent / path), place[label]) for _, (path, label) in lines]
    for path, _ in samples:
        if not Path(path).is_file():
            raise FileError(f"{file} names {path}, which is no file; {_REMEDY}")
    return classes, samples


def check_apart(file: Path, paths: Sequence[str], other: Path, others: Sequence[str]) -> None:
    """Refuse a list that names an image of another part of the data.

    Args:
        file: the list.
        paths: the images of ``file``.
        other: the list or the folder of the other part.
        others: the images of the other part.

    Raises:
        FileError: an image is in both.
    """
    known = {os.path.abspath(path) for path in others}
    if not any(os.path.abspath(path) in known for path in paths):
        return
    for line, (path, _) in read_csv(file, ("path", "label"), _REMEDY):
        if os.path.abspath(file.parent / path) in known:
            raise FileError(
                f"{file}:{line} names {path}, which {other} has too: expected no image in both, as "
                "networks would be judged on images that they were trained on; take it out of one of them"
            )


def _check_once(file: Path, lines: Sequence[tuple[int, tuple[str, ...]]]) -> None:
    """Refuse an image that is listed twice: it could be in two parts of the data, or in two classes."""
    first: dict[str, int] = {}
    for line, (path, _) in lines:
        before = first.setdefault(os.path.abspath(file.parent / path), line)
        if before != line:
            raise FileError(
                f"{file}:{line} names {path}, as line {before} does: expected every image once, as one that "
                "is listed twice could be trained on and judge; take out one of the lines"
            )
