"""Lists of image files: csv files with the columns ``path`` and ``label``."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from amc.data.pictures import resolved
from amc.errors import FileError
from amc.reading import read_csv

SUFFIX = ".csv"
_REMEDY = "expected lines path,label under a first line path,label; paths are relative to the file"

MOST_CLASSES = 1_000_000
"""Labels from here on are identifiers rather than class numbers."""
_NUMBER, _WHOLE = re.compile(r"[+-]?\d+(\.\d*)?", re.ASCII), re.compile(r"\d+(\.0*)?", re.ASCII)


def read_list(file: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """Read a list of images.

    Labels that are all numbers are class numbers, from 0; others are names.

    Args:
        file: the csv file; relative paths in it begin at its folder.

    Returns:
        the names of the classes, sorted, or the numbers from 0 to the largest label; and the path and the
        class number of every image.

    Raises:
        FileError: the list is damaged or names an image twice, an image is missing, or labels are numbers but
            no class numbers.
    """
    lines = read_csv(file, ("path", "label"), _REMEDY)
    _check_once(file, lines)
    classes, labels = _classes(file, [(line, label.strip()) for line, (_, label) in lines])
    samples = [(str(file.parent / path), label) for (_, (path, _)), label in zip(lines, labels, strict=True)]
    for path, _ in samples:
        if not Path(path).is_file():
            raise FileError(f"{file} names {path}, which is no file; {_REMEDY}")
    return classes, samples


def _classes(file: Path, labels: Sequence[tuple[int, str]]) -> tuple[list[str], list[int]]:
    """Return the names of the classes, and the class number of every line.

    Args:
        file: the list, for messages.
        labels: the number of every line and its label.

    Raises:
        FileError: a label is blank, or all are numbers, and one is negative, no whole one or too large.
    """
    if blank := [line for line, label in labels if not label]:
        raise FileError(f"{file}:{blank[0]} has a blank label; {_REMEDY}")
    if not all(_NUMBER.fullmatch(label) for _, label in labels):
        names = sorted({label for _, label in labels})
        place = {name: number for number, name in enumerate(names)}
        return names, [place[label] for _, label in labels]
    numbers = [_class_number(f"{file}:{line}", label) for line, label in labels]
    # as it is written where it is: class folders may be named 00, 01, ...
    written = {n: label for n, (_, label) in zip(numbers, labels, strict=True) if label.isdecimal()}
    return [written.get(number, str(number)) for number in range(max(numbers) + 1)], numbers


def _class_number(where: str, label: str) -> int:
    """Return a label as a whole number, 2.0 as 2."""
    if _WHOLE.fullmatch(label) and (number := int(label.partition(".")[0])) < MOST_CLASSES:
        return number
    raise FileError(
        f"{where} has the label {label}; expected a class number from 0, as all labels are numbers; names of "
        "classes need a letter in one of them"
    )


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
    known = set(resolved(others))
    if known.isdisjoint(resolved(paths)):
        return
    for line, (path, _) in read_csv(file, ("path", "label"), _REMEDY):
        if resolved([str(file.parent / path)])[0] in known:
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
