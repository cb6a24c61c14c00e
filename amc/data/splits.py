"""The form of every data set here, and the functions that build it.

``test`` is loaded only when it is called, so that a search cannot use it by accident. The images held out of
training depend on ``SPLIT_SEED`` and not on the seed of a run. Results of different seeds are therefore
comparable, and a network trained with one seed has not seen the search images of another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from amc.data.augment import Augment, normalise, resize
from amc.data.pictures import Pictures
from amc.digest import digest
from amc.errors import AmcError, SettingError
from amc.seeds import generator, mix

SPLIT_SEED = 20180810
"""Chooses the images that are held out, for every seed of a run."""


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

    With ``part`` only that part of every batch is loaded; it is the same as of the whole batch.
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

    @property
    def held_out(self) -> int:
        """Number of the images that are kept out of training; views of one image count once."""
        unseen = len(self.unseen) if self.unseen is not None else 0
        return len(self.search_val) // self.search_views + unseen


@dataclass(frozen=True, eq=False)
class RawImages:
    """Unprocessed ``images`` (N, C, H, W) uint8 and their ``labels`` (N,) int64."""

    images: Tensor
    labels: Tensor

    def __getitem__(self, index: Tensor) -> RawImages:
        return RawImages(self.images[index], self.labels[index])


def stratified_pick(labels: Tensor, count: int, seed: int) -> Tensor:
    """Pick ``count`` images such that each class has its share, to within one image.

    Every image gets its position in its shuffled class as a fraction of the class size, and images are picked
    by rising fraction. Any first or last part of the pick is therefore stratified too.

    Args:
        labels: (N,) int64.

    Returns:
        Indices into ``labels``: (count,) int64.
    """
    order = torch.randperm(len(labels), generator=generator(seed))
    fraction = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = order[labels[order] == label]
        fraction[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    ranked = order[fraction[order].argsort(stable=True)]
    return ranked[:count]


SEARCH_SHARE = 5
"""Unless asked otherwise, at most one in so many training images is held out for a search."""


def count_or_most(asked: int | None, available: int, most: int) -> int:
    """Return the number of images that is asked for, else as many as there are, from 1 to ``most``."""
    return max(1, min(most, available)) if asked is None else asked


def hold_out(labels: Tensor, count: int, *, name: str, of: str) -> tuple[Tensor, Tensor]:
    """Hold out a stratified part of the images, the same for every seed of a run.

    Args:
        labels: (N,) int64.
        count: number of images to hold out.
        name: names the part in messages, and selects its random stream.
        of: names the images in messages.

    Returns:
        Indices of the part (count,) and of the rest (N - count,), int64.

    Raises:
        SettingError: ``count`` is below 1, or no image would be left.
    """
    require_positive(**{name: count})
    if count >= len(labels):
        raise SettingError(
            f"{name}={count}, but {of} has {len(labels)} images: expected fewer, so that some are left to "
            f"train on; lower {name}, for example to {max(1, len(labels) // SEARCH_SHARE)}"
        )
    held = stratified_pick(labels, count, mix(SPLIT_SEED, name))
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[held] = False
    return held, rest.nonzero().squeeze(1)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Indices (int64) of the training images in three disjoint parts; networks are trained on ``rest``."""

    search_val: Tensor
    unseen: Tensor
    rest: Tensor


def hold_out_two(labels: Tensor, search_val: int, unseen: int, *, of: str) -> HeldOut:
    """Hold out the search images, and ``unseen`` images after them, as ``hold_out`` does.

    Both together are the search images of ``search_val + unseen``: a network trained without those has seen
    none of these.

    Args:
        labels: (N,) int64.
        search_val: number of search images.
        unseen: number of images that nothing else uses; 0 for none.
        of: names the images in messages.

    Raises:
        SettingError: ``search_val`` is below 1 or ``unseen`` below 0, or no image would be left.
    """
    require_positive(search_val=search_val)
    check_unseen(unseen)
    if unseen and search_val + unseen >= len(labels):
        raise SettingError(
            f"search_val={search_val} and unseen={unseen}, but {of} has {len(labels)} images: expected fewer "
            "together, so that some are left to train on; lower one of them"
        )
    held, rest = hold_out(labels, search_val + unseen, name="search_val", of=of)
    return HeldOut(held[:search_val], held[search_val:], rest)


def check_unseen(count: int) -> None:
    """Check a number of unseen images.

    Raises:
        SettingError: it is negative.
    """
    if count < 0:
        raise SettingError(f"unseen={count}: expected a number of images, or 0 for none")


def pick_from(labels: Tensor, count: int, seed: int, *, name: str, of: str) -> Tensor:
    """Pick images as ``stratified_pick`` does.

    Args:
        labels: (N,) int64.
        name: names the pick in messages.
        of: names the images in messages.

    Returns:
        Indices into ``labels``: (count,) int64.

    Raises:
        SettingError: ``count`` is below 1 or above N.
    """
    require_positive(**{name: count})
    if count > len(labels):
        raise SettingError(f"{name}={count}, but {of} has only {len(labels)} images; lower {name}")
    return stratified_pick(labels, count, seed)


def require_positive(**numbers: int) -> None:
    """Check settings, given by their names.

    Raises:
        SettingError: one of them is below 1.
    """
    for name, number in numbers.items():
        if number < 1:
            raise SettingError(f"{name}={number}: expected a whole number of at least 1")


def channel_statistics(
    mean: Sequence[float], std: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return ``mean`` and ``std``, one value per channel on the [0, 1] scale, as tuples.

    Raises:
        SettingError: there are not three channels, or a ``std`` is not positive.
    """
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3:
            raise SettingError(
                f"{name} has {len(values)} values, expected 3 (red, green, blue, each in 0..1)"
            )
    if min(std) <= 0:
        raise SettingError(f"std={list(std)}: expected positive values on the 0..1 scale")
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
    )
