"""The batches of a training: the images that an epoch shows, augmented, with their targets."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from torch import Tensor

from amc.data import Splits
from amc.data.splits import WHOLE, Part, TrainBatches
from amc.seeds import mix
from amc.training.augment import Augmentation
from amc.training.settings import TrainSettings
from amc.training.teaching.protocol import Batch


def batches(
    splits: Splits, settings: TrainSettings, epoch: int, seed: int, part: Part = WHOLE
) -> Iterator[Batch]:
    """Yield the batches of epoch number ``epoch``, from 0.

    Images are mixed with others of the whole batch. Every process therefore loads whole batches where the
    recipe augments, and its part alone where it does not, if the data set can load parts.
    """
    augmentation = Augmentation(settings, splits.mean, splits.std, splits.num_classes)
    view = settings.view(epoch)
    if not settings.augments:
        for index, (images, labels) in enumerate(_parts(splits.train_batches, view, seed, part)):
            yield Batch(view, index, images, labels, labels, part)
        return
    for index, (images, labels) in enumerate(splits.train_batches(view, seed)):
        augmented, targets = augmentation(images, labels, mix(seed, view, index, "augment"))
        yield Batch(view, index, part.of(augmented), part.of(labels), part.of(targets), part)


def _parts(load: TrainBatches, view: int, seed: int, part: Part) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the process's part of every batch."""
    if part.count == 1:
        return load(view, seed)
    if _takes_part(load):
        return load(view, seed, part=part)
    return ((part.of(images), part.of(labels)) for images, labels in load(view, seed))


def _takes_part(load: TrainBatches) -> bool:
    """Whether a function of batches has a parameter ``part``; a user's may know whole batches alone."""
    try:
        found = inspect.signature(load).parameters.get("part")
    except (TypeError, ValueError):  # of something that is not written in Python
        return False
    return found is not None and found.kind in (found.POSITIONAL_OR_KEYWORD, found.KEYWORD_ONLY)
