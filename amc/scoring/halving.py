"""Smaller parts of a batch where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from functools import partial
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from amc.errors import AmcError, out_of_memory
from amc.notes import note_once

T = TypeVar("T")

_LARGEST: MutableMapping[nn.Module, int] = WeakKeyDictionary()
"""The most images at once, of networks for which memory once ran out."""


def in_parts(model: nn.Module, images: Tensor, size: int, run: Callable[[Tensor], T]) -> list[T]:
    """Call ``run`` on consecutive parts of ``images``, and halve the parts for as long as memory runs out.

    A network keeps the smaller size for later calls. A halving is said once in one line.

    Args:
        model: the network that ``run`` uses.
        images: (N, C, H, W).
        size: images of a part.
        run: is called again, on fewer images, after it ran out of memory.

    Returns:
        What ``run`` returned for each part.

    Raises:
        AmcError: memory ran out with a single image.
    """
    found: list[T] = []
    start = 0
    while start < len(images):
        part = images[start : start + min(size, _LARGEST.get(model, size))]
        if (result := fitting(partial(run, part))) is None:
            _LARGEST[model] = half(model, len(part))
            continue
        found += result
        start += len(part)
    return found


def fitting(attempt: Callable[[], T]) -> tuple[T] | None:
    """Return what ``attempt`` returns, or None if memory ran out, of a GPU or of the machine."""
    try:
        return (attempt(),)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    # Only now: the error holds the frames of the attempt, and with them its tensors.
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return None


def half(model: nn.Module, images: int, least: int = 1) -> int:
    """Return half of a number of images for which memory ran out, rounded up; it is said once in one line.

    Raises:
        AmcError: fewer than ``least`` would be left.
    """
    name = type(model).__name__
    if images < 2 * least:
        raise AmcError(
            f"memory ran out while {name} ran on {images} images; expected more memory, or a smaller network "
            "or image; another program may hold the memory"
        )
    note_once(f"memory ran out while {name} ran: it runs on smaller parts of each batch from now on")
    return (images + 1) // 2
