"""Images from the usual objects of PyTorch: tensors, pairs, data sets and loaders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from amc.data import LabelledImages
from amc.errors import SettingError

BATCH = 256
IMAGE_KEYS = ("image", "images", "pixel_values", "input", "x")
LABEL_KEYS = ("label", "labels", "target", "targets", "y")


def collect_images(source: Any, what: str) -> tuple[LabelledImages, bool]:
    """Return all images of ``source`` in memory, and whether they have labels.

    Args:
        source: images (N, C, H, W); a pair of images and labels (N,); a data set of images or pairs; or any
            iterable of batches, such as a ``DataLoader``. A batch is a tensor, a pair, or a dictionary with
            one of ``IMAGE_KEYS`` and perhaps one of ``LABEL_KEYS``.
        what: name of the argument, for messages.

    Returns:
        images (N, C, H, W) float32 and labels (N,) int64, zeros if there are none; and whether there are.

    Raises:
        SettingError: ``source`` is none of these, or holds no images.
    """
    if isinstance(source, LabelledImages):
        return source, True
    if isinstance(source, Tensor) or _is_pair(source):
        batches: Iterable[Any] = [source]
    elif isinstance(source, Dataset) and not isinstance(source, IterableDataset):
        batches = DataLoader(source, batch_size=BATCH)
    elif isinstance(source, Iterable):
        batches = source
    else:
        raise SettingError(
            f"{what} is a {type(source).__name__}; expected a tensor, a pair (images, labels), a data set or "
            "a loader"
        )
    parts = [_read(batch, what) for batch in batches]
    if not parts or not sum(len(images) for images, _ in parts):
        raise SettingError(f"{what} holds no images; expected at least one")
    images = torch.cat([images for images, _ in parts])
    labels = [labels for _, labels in parts if labels is not None]
    if len(labels) < len(parts):
        return LabelledImages(images, torch.zeros(len(images), dtype=torch.int64)), False
    return LabelledImages(images, torch.cat(labels)), True


def _is_pair(source: Any) -> bool:
    return isinstance(source, tuple | list) and len(source) == 2 and all(_is_array(part) for part in source)


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _read(batch: Any, what: str) -> tuple[Tensor, Tensor | None]:
    """Split one batch into images (N, C, H, W) float32 and labels (N,) int64; None if it has no labels."""
    labels: Any = None
    if isinstance(batch, Mapping):
        image_key = next((key for key in IMAGE_KEYS if key in batch), None)
        label_key = next((key for key in LABEL_KEYS if key in batch), None)
        if image_key is None:
            raise SettingError(
                f"{what} yields a dictionary of {', '.join(map(str, batch))}; expected 'image'"
            )
        batch, labels = batch[image_key], None if label_key is None else batch[label_key]
    elif isinstance(batch, tuple | list):
        labels = batch[1] if len(batch) > 1 else None
        batch = batch[0]
    images = torch.as_tensor(batch)
    if images.ndim != 4:
        raise SettingError(
            f"{what} yields images of shape {tuple(images.shape)}; expected batches (N, C, H, W)"
        )
    found = None if labels is None else torch.as_tensor(labels)
    if found is not None and (found.ndim != 1 or found.is_floating_point()):
        found = None  # boxes or masks, for example, are no class labels
    return images.float(), None if found is None else found.long()
