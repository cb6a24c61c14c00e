"""Lists of image files: csv files with the columns ``path`` and ``label``."""

from __future__ import annotations

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
        FileError: the list is damaged, or an image is missing.
    """
    lines = read_csv(file, ("path", "label"), _REMEDY)
    labels = {label for _, label in lines}
    numbers = all(label.isdecimal() for label in labels)
    classes = sorted(labels, key=lambda label: (int(label), label) if numbers else (0, label))
    place = {name: number for number, name in enumerate(classes)}
    samples = [(str(file.parent / path), place[label]) for path, label in lines]
    for path, _ in samples:
        if not Path(path).is_file():
            raise FileError(f"{file} names {path}, which is no file; {_REMEDY}")
    return classes, samples
