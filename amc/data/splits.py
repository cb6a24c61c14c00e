"""The one shape that every data set takes here, and the helpers that build it.

`test` is loaded only when called, so a search cannot touch it by accident. Which images are held out of
training never depends on the seed of a run (`SPLIT_SEED`): results stay comparable across seeds, and a
network trained under one seed has not seen the search images of another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amc.data.augment import Augment, normalise, resize
from amc.digest import digest
from amc.errors import AmcError
from amc.seeds import generator, mix

SPLIT_SEED = 20180810
"""Decides which images are held out, whatever the seed of the run."""


TrainBatches = Callable[[int, int], Iterator[tuple[Tensor, Tensor]]]
"""(epoch, seed) to (images (B,C,H,W) float32, labels (B,) int64); same arguments, same batches."""


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Normalised `images` (N,C,H,W) float32 and their `labels` (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(
        self, device: torch.device | str, memory_format: torch.memory_format = torch.contiguous_format
    ) -> LabelledImages:
        """Return the same images and labels on `device`, the images laid out in `memory_format`."""
        images = self.images.to(device).contiguous(memory_format=memory_format)
        return LabelledImages(images, self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set cut up for a search.

    `calibration` is part of the training images, `search_val` is held out of them and judges candidates,
    `test` is for the one number at the end. `input_shape` is (C,H,W), `mean` and `std` are per channel on the
    [0, 1] scale, and `fingerprint` is the sha256 (hex) of `calibration` and `search_val`.
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


@dataclass(frozen=True, eq=False)
class RawImages:
    """Unprocessed `images` (N,C,H,W) uint8 and their `labels` (N,) int64."""

    images: Tensor
    labels: Tensor

    def __getitem__(self, index: Tensor) -> RawImages:
        return RawImages(self.images[index], self.labels[index])


def stratified_pick(labels: Tensor, count: int, seed: int) -> Tensor:
    """Return `count` indices into `labels` (N,), each class in proportion to its size to within one.

    Every image gets its shuffled place within its class as a fraction of the class; the lowest fractions win,
    the lowest first. So the first images of a pick, however many, are stratified too, and so are the last:
    whoever takes a part of them (as many as a layer is solved on, say) sees all classes.
    """
    order = torch.randperm(len(labels), generator=generator(seed))
    fraction = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = order[labels[order] == label]
        fraction[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    ranked = order[fraction[order].argsort(stable=True)]
    return ranked[:count]


def hold_out(labels: Tensor, count: int, *, name: str, of: str) -> tuple[Tensor, Tensor]:
    """Split indices into a stratified `count` and the rest, independent of the run's seed.

    `name` and `of` are for the message when nothing would be left.
    """
    require_positive(**{name: count})
    if count >= len(labels):
        raise AmcError(
            f"data.{name}={count}, but {of} has {len(labels)} images: expected fewer, so that some are left "
            f"to train on; lower data.{name}"
        )
    held = stratified_pick(labels, count, mix(SPLIT_SEED, name))
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[held] = False
    return held, rest.nonzero().squeeze(1)


def pick_from(labels: Tensor, count: int, seed: int, *, name: str, of: str) -> Tensor:
    """`stratified_pick` that refuses a `count` beyond what `of` holds."""
    require_positive(**{name: count})
    if count > len(labels):
        raise AmcError(f"data.{name}={count}, but {of} has only {len(labels)} images; lower data.{name}")
    return stratified_pick(labels, count, seed)


def require_positive(**numbers: int) -> None:
    """Raise `AmcError` for the first of `numbers` below one, named as its configuration key."""
    for name, number in numbers.items():
        if number < 1:
            raise AmcError(f"data.{name}={number}: expected a whole number of at least 1")


def channel_statistics(
    mean: Sequence[float], std: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return `mean` and `std` as tuples; refuse other than three channels and a `std` not positive."""
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3:
            raise AmcError(
                f"data.{name} has {len(values)} values, expected 3 (red, green, blue, each in 0..1)"
            )
    if min(std) <= 0:
        raise AmcError(f"data.std={list(std)}: expected positive values on the 0..1 scale")
    return tuple(float(value) for value in mean), tuple(float(value) for value in std)


def check_labels(labels: Tensor, num_classes_of_head: int) -> None:
    """Raise `AmcError` if any of `labels` (N,) has no output in a head of `num_classes_of_head`."""
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes_of_head:
        raise AmcError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, but the network has "
            f"{num_classes_of_head} outputs (0..{num_classes_of_head - 1}): data set and checkpoint do not "
            "match"
        )


def fingerprint(*parts: LabelledImages) -> str:
    """Return the sha256 (hex) over shapes, images and labels."""
    tensors = [tensor for part in parts for tensor in (part.images, part.labels)]
    return digest(*[entry for tensor in tensors for entry in (repr(tuple(tensor.shape)), tensor)])


def batch_indices(count: int, batch_size: int, epoch: int, seed: int) -> list[Tensor]:
    """Return the shuffled index batches of one epoch.

    A short last batch is dropped (batch norm cannot train on one image) unless it is the only one.
    """
    order = torch.randperm(count, generator=generator(seed, epoch))
    return list(order[: steps_per_epoch(count, batch_size) * batch_size].split(batch_size))


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return how many batches `batch_indices` gives."""
    return max(1, count // batch_size)


def from_memory(
    name: str,
    *,
    num_classes: int,
    train: RawImages,
    search_val: RawImages,
    load_test: Callable[[], RawImages],
    augment: Augment,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    image_size: int,
    batch_size: int,
    calibration: int,
    seed: int,
) -> Splits:
    """Build `Splits` from uint8 images in memory; `seed` chooses the calibration images out of `train`."""
    require_positive(batch_size=batch_size, image_size=image_size)

    def finish(images: Tensor) -> Tensor:
        return resize(normalise(images, mean, std), image_size)

    def labelled(raw: RawImages) -> LabelledImages:
        return LabelledImages(finish(raw.images), raw.labels)

    def train_batches(epoch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        draws = generator(seed, epoch, 1)
        for index in batch_indices(len(train.labels), batch_size, epoch, seed):
            yield finish(augment(train.images[index], draws)), train.labels[index]

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
    )
