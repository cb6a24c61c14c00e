"""Which image files are in which part of a data set: a later call can tell those that were trained on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from amc.digest import digest
from amc.errors import FileError
from amc.seeds import mix


@dataclass(frozen=True, eq=False)
class Pictures:
    """The files of the parts of a data set.

    Attributes:
        root: folder of the data set: files are told apart by their paths from there, so that it may be moved.
        train, search_val, unseen, test: paths of the parts.
    """

    root: Path
    train: Sequence[str]
    search_val: Sequence[str]
    unseen: Sequence[str]
    test: Sequence[str]

    def keys(self, part: str) -> Tensor:
        """Return a hash of every file of a part: (N,) int64."""
        return torch.tensor([mix(path) for path in self._inside(part)], dtype=torch.int64)

    def digest(self, part: str, labels: Tensor) -> str:
        """Return the SHA-256 (hex) of the paths, sizes in bytes and ``labels`` (N,) of a part's files.

        Raises:
            FileError: a file is gone.
        """
        sizes = [_size(path) for path in getattr(self, part)]
        return digest(repr(self._inside(part)), repr(sizes), labels)

    def among(self, part: str, keys: Tensor) -> int:
        """Return how many files of a part have one of the hashes ``keys`` (M,) int64."""
        return int(torch.isin(self.keys(part), keys).sum())

    def _inside(self, part: str) -> list[str]:
        """Return the paths of a part's files from the root."""
        root = os.path.normpath(self.root) + os.sep
        return [os.path.normpath(path).removeprefix(root) for path in getattr(self, part)]


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError as error:
        raise FileError(
            f"{path} cannot be read ({error.strerror}); it was there when it was listed"
        ) from error
