"""Calibration images as a sequential refit runs them: in blocks, the last ones held out."""

from __future__ import annotations

from collections.abc import Callable
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

    @property
    def parted(self) -> tuple[tuple[Tensor, ...], int]:
        """Blocks that are held out wholly or not at all, and how many of the first ones are not."""
        fit = len(self.images) - self.held_out
        solved = self.images[:fit].split(POSITION_BLOCK)
        judged = self.images[fit:].split(POSITION_BLOCK) if self.held_out else ()
        return (*solved, *judged), len(solved)
