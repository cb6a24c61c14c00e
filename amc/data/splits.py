"""The form of every data set here, and the functions that build it.

``test`` is loaded only when it is called, so that a search cannot use it by accident.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from amc.data.augment import Augment, normalise, resize
from amc.data.picking import check_search_val, check_unseen, pick_from, require_positive
from amc.data.pictures import Pictures
from amc.digest import digest
from amc.errors import AmcError, SettingError
from amc.seeds import generator, mix


@dataclass(frozen=True)
class Part:
    """The share of every batch that one of ``count`` processes works on, number ``rank`` from 0."""

    rank: int = 0
    count: int = 1

    def of(self, rows: Tensor) -> Tensor:
        """Return the process's rows of a tensor (N, ...): consecutive ones, equally many up to one."""
        return rows if self.count == 1 else rows.tensor_split(self.count)[self.rank]


WHOLE = Part()


class TrainBatches(Protocol):
    """(epoch, seed) -> batches of images (B, C, H, W) float32 and labels (B,) int64, the same at each call.

    With ``part`` only that part of every batch is loaded; it is the same as of the whole batch. A function
    without this parameter is asked for whole batches by every process.
    """

    def __call__(self, epoch: int, seed: int, part: Part = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches."""


@dataclass(frozen=True, eq=False)
class TrainOrder:
    """Which training images the batches hold.

    Attributes:
        rows: (N,) int64: the row of each training image in the data set's whole training set.
        total: number of images of the whole training set, with those that are held out.
        batch_size: images per batch.
    """

    rows: Tensor
    total: int
    batch_size: int

    def batches(self, epoch: int, seed: int) -> list[Tensor]:
        """Return the positions (B,) int64 among the N training images of each batch of an epoch."""
        return batch_indices(len(self.rows), self.batch_size, epoch, seed)


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Normalised ``images`` (N, C, H, W) float32 and their ``labels`` (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(
        self, device: torch.device | str, memory_format: torch.memory_format = torch.contiguous_format
    ) -> LabelledImages:
        """Return the images, in ``memory_format``, and the labels on ``device``."""
        images = self.images.to(device).contiguous(memory_format=memory_format)
        return LabelledImages(images, self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set split for a search.

    Attributes:
        name: the name of the data set.
        num_classes: number of labels.
        input_shape: (channels, height, width) of one image, in pixels.
        mean, std: (C,) per channel, on the [0, 1] scale.
        calibration: some of the training images.
        search_val: images held out of training, on which candidates are scored.
        unseen: images that neither training nor calibration nor the scores of candidates use, if asked for.
        class_names: names of the labels, where the data set has any.
        shorter_side: side in pixels to which evaluation images are scaled before the centre crop; None if
            whole images are scaled to ``input_shape``.
        upside_down: whether images are turned by 180 degrees.
        train_batches: augmented training images, batch by batch.
        steps_per_epoch: number of training batches.
        test: loads the test images, which are for the final number only.
        fingerprint: SHA-256 (hex) of ``calibration`` and ``search_val``.
        order: which images the batches hold, if the data set tells it.
        pictures: the files of all parts, for a data set of image files.
        search_views: views of every search image that ``search_val`` holds (``amc.data.views``).
        train_digest: returns a SHA-256 (hex) of all training images, or of the names and sizes of their
            files, with their labels; None if the data set does not tell.

    Raises:
        SettingError: networks cannot be judged on so few images.
    """

    name: str
    num_classes: int
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    calibration: LabelledImages
    search_val: LabelledImages
    train_batches: TrainBatches
    steps_per_epoch: int
    test: Callable[[], LabelledImages]
    fingerprint: str
    unseen: LabelledImages | None = None
    class_names: tuple[str, ...] = ()
    shorter_side: int | None = None
    upside_down: bool = False
    order: TrainOrder | None = None
    pictures: Pictures | None = None
    search_views: int = 1
    train_digest: Callable[[], str] | None = None

    def __post_init__(self) -> None:
        check_search_val(len(self.search_val))
        check_unseen(0 if self.unseen is None else len(self.unseen))

    @property
    def held_out(self) -> int:
        """Number of the images that are kept out of training; views of one image count once."""
        unseen = len(self.unseen) if self.unseen is not None else 0
        return self.search_images + unseen

    @property
    def search_images(self) -> int:
        """Number of the images that ``search_val`` holds, or holds views of."""
        return len(self.search_val) // self.search_views

    @property
    def takes_from_training(self) -> bool:
        """Whether more held-out images are fewer for training, as far as the data set tells (``order``)."""
        return self.order is None or len(self.order.rows) < self.order.total


@dataclass(frozen=True, eq=False)
class RawImages:
    """Unprocessed ``images`` (N, C, H, W) uint8 and their ``labels`` (N,) int64."""

    images: Tensor
    labels: Tensor

    def __getitem__(self, index: Tensor) -> RawImages:
        return RawImages(self.images[index], self.labels[index])


def channel_statistics(
    mean: Sequence[float], std: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return ``mean`` and ``std``, one value per channel on the [0, 1] scale, as tuples.

    Raises:
        SettingError: there are not three channels, a ``std`` is not positive, or values are beyond the scale.
    """
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3:
            raise SettingError(
                f"{name} has {len(values)} values, expected 3 (red, green, blue, each in 0..1)"
            )
    if min(std) <= 0:
        raise SettingError(f"std={list(std)}: expected positive values on the 0..1 scale")
    if min(mean) < 0 or max(*mean, *std) > 1:
        raise SettingError(
            f"mean={list(mean)} std={list(std)}: expected values on the 0..1 scale; likely cause: those of "
            "the 0..255 scale, which are to be divided by 255"
        )
    return tuple(float(value) for value in mean), tuple(float(value) for value in std)


def check_labels(labels: Tensor, num_classes_of_head: int) -> None:
    """Check that every label of ``labels`` (N,) has an output in a head of ``num_classes_of_head``.

    Raises:
        AmcError: a label has none.
    """
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes_of_head:
        raise AmcError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, but the network has "
            f"{num_classes_of_head} outputs (0..{num_classes_of_head - 1}): data set and checkpoint do not "
            "match"
        )


def fingerprint(*parts: LabelledImages) -> str:
    """Return the SHA-256 (hex) of the shapes, images and labels."""
    tensors = [tensor for part in parts for tensor in (part.images, part.labels)]
    return digest(*[entry for tensor in tensors for entry in (repr(tuple(tensor.shape)), tensor)])


def batch_indices(count: int, batch_size: int, epoch: int, seed: int) -> list[Tensor]:
    """Return the batches of one epoch: ``steps_per_epoch`` tensors (B,) of shuffled indices below ``count``.

    A short last batch is dropped, as batch norm cannot train on one image, unless it is the only one.
    """
    order = torch.randperm(count, generator=generator(seed, epoch))
    return list(order[: steps_per_epoch(count, batch_size) * batch_size].split(batch_size))


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return the number of batches that ``batch_indices`` returns."""
    return max(1, count // batch_size)


def from_memory(
    name: str,
    *,
    num_classes: int,
    train: RawImages,
    search_val: RawImages,
    unseen: RawImages | None = None,
    load_test: Callable[[], RawImages],
    augment: Augment,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    image_size: int,
    batch_size: int,
    calibration: int,
    seed: int,
    class_names: tuple[str, ...] = (),
    rows: Tensor | None = None,
    total: int | None = None,
) -> Splits:
    """Build ``Splits`` from uint8 images in memory.

    Args:
        train, search_val, unseen: images (N, C, H, W) and labels (N,); no unseen ones are the same as None.
        load_test: loads the test images.
        augment: applied to training batches before they are normalised and resized.
        mean, std: (C,) per channel, on the [0, 1] scale.
        image_size: side of the resized images in pixels.
        calibration: number of training images for calibration.
        seed: chooses the calibration images.
        class_names: names of the labels, if there are any.
        rows, total: see ``TrainOrder``; by default ``train`` is the whole training set.

    Raises:
        SettingError: an impossible size or count.
    """
    require_positive(batch_size=batch_size, image_size=image_size)

    def finish(images: Tensor) -> Tensor:
        return resize(normalise(images, mean, std), image_size)

    def labelled(raw: RawImages) -> LabelledImages:
        return LabelledImages(finish(raw.images), raw.labels)

    def train_batches(epoch: int, seed: int, part: Part = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        draws = generator(seed, epoch, 1)
        for index in batch_indices(len(train.labels), batch_size, epoch, seed):
            shown = part.of(augment(train.images[index], draws))  # the draws are those of the whole batch
            yield finish(shown), part.of(train.labels[index])

    picked = pick_from(
        train.labels, calibration, mix(seed), name="calibration", of=f"the {name} training set"
    )
    calibration_images, search_images = labelled(train[picked]), labelled(search_val)
    return Splits(
        name=name,
        num_classes=num_classes,
        input_shape=(train.images.shape[1], image_size, image_size),
        mean=mean,
        std=std,
        calibration=calibration_images,
        search_val=search_images,
        train_batches=train_batches,
        steps_per_epoch=steps_per_epoch(len(train.labels), batch_size),
        test=functools.cache(lambda: labelled(load_test())),
        fingerprint=fingerprint(calibration_images, search_images),
        unseen=labelled(unseen) if unseen is not None and len(unseen.labels) else None,
        class_names=class_names,
        order=TrainOrder(
            torch.arange(len(train.labels)) if rows is None else rows, total or len(train.labels), batch_size
        ),
        train_digest=functools.cache(
            lambda: digest(repr(tuple(train.images.shape)), train.images, train.labels)
        ),
    )
