"""The batches of a training: the images that an epoch shows, augmented, with their targets."""

from __future__ import annotations

from collections.abc import Iterator

from amc.data import Splits
from amc.data.splits import WHOLE, Part
from amc.seeds import mix
from amc.training.augment import Augmentation
from amc.training.settings import TrainSettings
from amc.training.teaching.protocol import Batch


def batches(
    splits: Splits, settings: TrainSettings, epoch: int, seed: int, part: Part = WHOLE
) -> Iterator[Batch]:
    """Yield the batches of epoch number ``epoch``, from 0.

    Images are mixed with others of the whole batch. Every process therefore loads whole batches where the
    recipe augments, and its part alone where it does not.
    """
    augmentation = Augmentation(settings, splits.mean, splits.std, splits.num_classes)
    view = settings.view(epoch)
    if not settings.augments:
        loaded = (
            splits.train_batches(view, seed, part) if part.count > 1 else splits.train_batches(view, seed)
        )
        for index, (images, labels) in enumerate(loaded):
            yield Batch(view, index, images, labels, labels, part)
        return
    for index, (images, labels) in enumerate(splits.train_batches(view, seed)):
        augmented, targets = augmentation(images, labels, mix(seed, view, index, "augment"))
        yield Batch(view, index, part.of(augmented), part.of(labels), part.of(targets), part)
