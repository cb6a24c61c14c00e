"""The batches of a training: the images that an epoch shows, augmented, with their targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from amc.data import Splits
from amc.seeds import mix
from amc.training.augment import Augmentation
from amc.training.settings import TrainSettings


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch; its images follow from the seed, ``view`` and ``index``.

    Attributes:
        view: number of the epoch whose images these are, from 0.
        index: number of the batch in its epoch, from 0.
        images: (N, C, H, W) float32, normalised and augmented.
        labels: (N,) int64.
        targets: the labels, or (N, classes) float32 shares where images are mixed.
    """

    view: int
    index: int
    images: Tensor
    labels: Tensor
    targets: Tensor


def batches(splits: Splits, settings: TrainSettings, epoch: int, seed: int) -> Iterator[Batch]:
    """Yield the batches of epoch number ``epoch``, from 0."""
    augmentation = Augmentation(settings, splits.mean, splits.std, splits.num_classes)
    view = settings.view(epoch)
    for index, (images, labels) in enumerate(splits.train_batches(view, seed)):
        augmented, targets = augmentation(images, labels, mix(seed, view, index, "augment"))
        yield Batch(view, index, augmented, labels, targets)
