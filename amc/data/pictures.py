"""Which image files are in which part of a data set: a later call can tell those that were trained on."""

from __future__ import annotations

import functools
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
            It does not matter how it is written.
        train, search_val, unseen, test: paths of the parts.
    """

    root: Path
    train: Sequence[str]
    search_val: Sequence[str]
    unseen: Sequence[str]
    test: Sequence[str]

    def keys(self, part: str) -> Tensor:
        """Return a hash of the path from the root of every file of a part: (N,) int64."""
        return _hashes(self._inside(part))

    def places(self, part: str) -> Tensor:
        """Return a hash of the place on this machine of every file of a part: (N,) int64.

        Folders that are links are followed. Files that are links are not: stores link all copies of a picture
        to one file, and that a test image is also a training image is no change of the parts.
        """
        return _hashes(resolved(getattr(self, part)))

    def digest(self, part: str, labels: Tensor) -> str:
        """Return the SHA-256 (hex) of the paths, sizes in bytes and ``labels`` (N,) of a part's files.

        Raises:
            FileError: a file is gone.
        """
        sizes = [_size(path) for path in getattr(self, part)]
        return digest(repr(self._inside(part)), repr(sizes), labels)

    def among(self, part: str, keys: Tensor, places: Tensor | None) -> int:
        """Return how many files of a part are known.

        Args:
            part: its name.
            keys: hashes (M,) int64, as ``keys`` returns them.
            places: hashes (M,) int64, as ``places`` returns them; None of pictures of which only ``keys`` is
                known.
        """
        known = torch.isin(self.keys(part), keys)
        if places is not None:
            known |= torch.isin(self.places(part), places)
        return int(known.sum())

    def _inside(self, part: str) -> list[str]:
        """Return the paths of a part's files from the root; links below it stay, as they move with it."""
        root, real = os.path.join(os.path.abspath(self.root), ""), os.path.realpath(self.root)
        paths = getattr(self, part)
        # a list may name the root, or what lies beside it, in another way
        return [
            path.removeprefix(root) if path.startswith(root) else os.path.relpath(other, real)
            for path, other in zip(map(os.path.abspath, paths), resolved(paths), strict=True)
        ]


def resolved(paths: Sequence[str]) -> list[str]:
    """Return the absolute paths of files, of whose folders none is a link; files may be links."""
    real = functools.cache(os.path.realpath)
    return [os.path.join(real(os.path.dirname(path)), os.path.basename(path)) for path in paths]


def _hashes(paths: Sequence[str]) -> Tensor:
    return torch.tensor([mix(path) for path in paths], dtype=torch.int64)


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError as error:
        raise FileError(
            f"{path} cannot be read ({error.strerror}); it was there when it was listed"
        ) from error
