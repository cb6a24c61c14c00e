"""Other views of the search images, shifted and mirrored: a network that knows the images sees them anew."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from amc.data.splits import LabelledImages, Splits, fingerprint
from amc.errors import SettingError

DIRECTIONS = ((1, 1), (-1, -1), (1, -1), (-1, 1))
"""(down, right) of the views after the first, which is the image itself."""
SHARE = 8
"""Images are shifted by this part of their side: 4 of 32 pixels, the most of CIFAR-10's training images."""


def with_views(splits: Splits, views: int, *, mirror: bool) -> Splits:
    """Return the splits with ``views`` views of every search image: first all images, then all of each view.

    Nothing is random. Pixels from outside of an image are black, as in a padded training image.

    Args:
        splits: the data set.
        views: number of views, 1 for the images alone.
        mirror: mirror every second view, for data whose classes are the same in a mirror.

    Raises:
        SettingError: ``views`` is below 1, or there are not so many.
    """
    most = 1 + len(DIRECTIONS)
    if not 1 <= views <= most:
        raise SettingError(f"search_views={views}: expected 1 (the images alone) to {most}")
    if views == 1:
        return splits
    part = splits.search_val
    mean, std = (torch.tensor(each, dtype=torch.float32) for each in (splits.mean, splits.std))
    seen = [part.images]
    for number, (down, right) in enumerate(DIRECTIONS[: views - 1]):
        flipped = part.images.flip(-1) if mirror and number % 2 == 0 else part.images
        seen.append(shifted(flipped, down, right, fill=-mean / std))
    shown = LabelledImages(torch.cat(seen), part.labels.repeat(views))
    known = fingerprint(splits.calibration, shown)
    return replace(splits, search_val=shown, fingerprint=known, search_views=views)


def shifted(images: Tensor, down: int, right: int, *, fill: Tensor) -> Tensor:
    """Shift images (N, C, H, W) by a part of their side.

    Args:
        down, right: 1 or -1 each: the direction.
        fill: (C,) the colour of pixels from outside.
    """
    rows, columns = (max(1, side // SHARE) for side in images.shape[-2:])
    moved = images.roll((down * rows, right * columns), (-2, -1))
    colour = fill.to(moved)[:, None, None]
    moved[..., slice(None, rows) if down > 0 else slice(-rows, None), :] = colour
    moved[..., slice(None, columns) if right > 0 else slice(-columns, None)] = colour
    return moved
