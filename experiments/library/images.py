"""Images from the usual objects of PyTorch: tensors, pairs, data sets and loaders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from amc.data import LabelledImages
from amc.errors import SettingError, brief, out_of_memory
from amc.notes import note_once
from amc.scoring.run import unusable

BATCH = 256
IMAGE_KEYS = ("image", "images", "pixel_values", "input", "x")
LABEL_KEYS = ("label", "labels", "target", "targets", "y")


@torch.no_grad()
def collect_images(source: Any, what: str) -> tuple[LabelledImages, bool]:
    """Return all images of ``source`` in memory, and whether they have labels.

    Args:
        source: normalised images (N, C, H, W); a pair of images and labels (N,) or (N, 1); a data set of
            images or pairs; or any iterable of batches, such as a ``DataLoader``. A batch is a tensor, a
            pair, or a dictionary with one of ``IMAGE_KEYS`` and perhaps one of ``LABEL_KEYS``. Targets of
            another form, such as boxes and masks, are left out, and noted.
        what: name of the argument, for messages.

    Returns:
        images (N, C, H, W) float32 and labels (N,) int64, zeros if there are none; and whether there are.

    Raises:
        SettingError: ``source`` is none of these, holds no images, images of several shapes, or NaN or
            infinity, or its labels are no class numbers, one for each image.
    """
    if isinstance(source, LabelledImages):
        batches: Iterable[Any] = [(source.images, source.labels)]
    elif isinstance(source, Tensor) or _is_pair(source, what):
        batches = [source]
    elif isinstance(source, Dataset) and not isinstance(source, IterableDataset):
        batches = DataLoader(source, batch_size=BATCH, collate_fn=partial(_joined, what))
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
    if len(shapes := {tuple(images.shape[1:]) for images, _ in parts}) > 1:
        one, other = sorted(shapes)[:2]
        raise SettingError(
            f"{what} yields images of shapes {one} and {other}; expected one shape of them all"
        )
    images = torch.cat([images for images, _ in parts])
    if bad := unusable(images):
        raise SettingError(f"{what}: {bad}; expected finite numbers")
    labels = [labels for _, labels in parts if labels is not None]
    if len(labels) < len(parts):
        return LabelledImages(images, torch.zeros(len(images), dtype=torch.int64)), False
    return LabelledImages(images, torch.cat(labels)), True


def _joined(what: str, entries: list[Any]) -> Any:
    """Join entries of a data set; what cannot be joined beside the images, such as boxes, is left out.

    Raises:
        SettingError: the images cannot be joined.
    """
    with _but_memory():  # KeyError for dictionaries of other keys, RuntimeError for other numbers of boxes
        return default_collate(entries)
    pairs = [_parted(entry, what) for entry in entries]
    try:
        images = default_collate([image for image, _ in pairs])
    except Exception as error:
        if out_of_memory(error):
            raise
        raise SettingError(
            f"{what}: the images of the data set cannot be joined to a batch: {brief(error)}; expected "
            "tensors or arrays of one shape: give it a transform such as torchvision.transforms.v2"
        ) from error
    labels = [label for _, label in pairs]
    if all(label is None for label in labels):
        return images
    with _but_memory():
        return images, default_collate(labels)
    return images, [None] * len(entries)


@contextmanager
def _but_memory() -> Iterator[None]:
    """Suppress every error but that of memory which runs out."""
    try:
        yield
    except Exception as error:
        if out_of_memory(error):
            raise


def _is_pair(source: Any, what: str) -> bool:
    """Whether ``source`` is images and labels, and not two batches of images in a list.

    Raises:
        SettingError: it is two batches in a tuple, which might be a pair as well.
    """
    if not isinstance(source, tuple | list) or len(source) != 2 or not all(map(_is_array, source)):
        return False
    if len(source[0].shape) != 4 or len(source[1].shape) != 4:
        return True
    if isinstance(source, list):
        return False
    raise SettingError(
        f"{what} is a tuple of two batches of images; expected (images, labels), or two batches in a list"
    )


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _read(batch: Any, what: str) -> tuple[Tensor, Tensor | None]:
    """Split one batch into images (N, C, H, W) float32 and labels (N,) int64; None if it has no labels."""
    batch, labels = _parted(batch, what)
    if not _is_array(batch):
        raise SettingError(f"{what} yields a {type(batch).__name__}; expected batches of images (N, C, H, W)")
    images = torch.as_tensor(batch)
    if images.ndim != 4:
        raise SettingError(
            f"{what} yields images of shape {tuple(images.shape)}; expected batches (N, C, H, W)"
        )
    if not images.is_floating_point():
        raise SettingError(
            f"{what} yields images of {_kind(images)}; expected floats, normalised as for the training"
        )
    return images.float(), None if labels is None else _class_numbers(labels, len(images), what)


def _parted(entry: Any, what: str) -> tuple[Any, Any]:
    """Return the images and the labels of a batch, or of an entry of a data set; None if it has no labels."""
    if isinstance(entry, Mapping):
        image_key = next((key for key in IMAGE_KEYS if key in entry), None)
        label_key = next((key for key in LABEL_KEYS if key in entry), None)
        if image_key is None:
            raise SettingError(
                f"{what} yields a dictionary of {', '.join(map(str, entry))}; expected 'image'"
            )
        return entry[image_key], None if label_key is None else entry[label_key]
    if isinstance(entry, tuple | list) and entry:
        return entry[0], entry[1] if len(entry) > 1 else None
    return entry, None


def _class_numbers(labels: Any, count: int, what: str) -> Tensor | None:
    """Return labels (N,) int64; None, with a note, for what is no label of an image, such as boxes.

    Raises:
        SettingError: there are more or fewer than ``count``, or they are no whole numbers.
    """
    shape = tuple(getattr(labels, "shape", (len(labels),) if isinstance(labels, list) else ()))
    plain = _is_array(labels) or (isinstance(labels, list) and all(isinstance(own, int) for own in labels))
    if not plain or not (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)):
        kind = f"of shape {shape}" if _is_array(labels) else f"in a {type(labels).__name__}"
        note_once(f"{what}: the targets {kind} are left out, as they are no class numbers (N,)")
        return None
    found = torch.as_tensor(labels).reshape(-1)
    if len(found) != count:
        raise SettingError(f"{what} yields {len(found)} labels for {count} images; expected one for each")
    if found.is_floating_point() or found.is_complex():
        raise SettingError(
            f"{what} yields labels of {_kind(found)}; expected whole class numbers (N,); give the images "
            "alone if these are other targets"
        )
    return found.long()


def _kind(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")
