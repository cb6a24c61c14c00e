"""Which image files are in which part of a data set: a later call can tell those that were trained on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

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
        root = os.path.normpath(self.root) + os.sep
        found = [mix(os.path.normpath(path).removeprefix(root)) for path in getattr(self, part)]
        return torch.tensor(found, dtype=torch.int64)

    def among(self, part: str, keys: Tensor) -> int:
        """Return how many files of a part have one of the hashes ``keys`` (M,) int64."""
        return int(torch.isin(self.keys(part), keys).sum())
