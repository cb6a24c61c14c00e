"""Calibration images as a sequential refit runs them: in blocks, the last ones held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from amc.graph.unfolding import POSITION_BLOCK

Progress = Callable[[int], Any] | None


@dataclass(frozen=True)
class RefitImages:
    """Calibration images of which the last ones are held out.

    Attributes:
        images: (N, C, H, W).
        held_out: number of images that no layer is solved on.
    """

    images: Tensor
    held_out: int

    def __len__(self) -> int:
        return len(self.images)

    @property
    def few(self) -> Tensor:
        """Two images to try a network on."""
        return self.images[:2]

    @property
    def blocks(self) -> tuple[Tensor, ...]:
        """All images in blocks of ``POSITION_BLOCK``."""
        return self.images.split(POSITION_BLOCK)

    def solved_rows(self, rows: Sequence[int], *, by_image: bool) -> int:
        """Return how many of a layer's rows, the first ones, are of images that it is solved on.

        Args:
            rows: number of rows of each of ``blocks``.
            by_image: whether the rows of a block follow each other image by image. If not, they are mixed:
                only blocks that hold no held-out image count, or all of them if each holds one.
        """
        if by_image or not self.held_out:
            return sum(rows) - self.held_out * (sum(rows) // len(self.images))
        whole = (len(self.images) - self.held_out) // POSITION_BLOCK
        return sum(rows[:whole]) or sum(rows)

    @property
    def parted(self) -> tuple[tuple[Tensor, ...], int]:
        """Blocks that are held out wholly or not at all, and how many of the first ones are not."""
        fit = len(self.images) - self.held_out
        solved = self.images[:fit].split(POSITION_BLOCK)
        judged = self.images[fit:].split(POSITION_BLOCK) if self.held_out else ()
        return (*solved, *judged), len(solved)
