"""The augmentations of a recipe, applied to whole batches after those of the data set.

RandAugment, random erasing, mixup and cutmix are torchvision's (``torchvision.transforms.v2``). All draws of
a batch follow from one number, so that the same batch is augmented in the same way at every request.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from amc.data.augment import normalise
from amc.errors import SettingError
from amc.training.settings import TrainSettings

GROUP = 8
"""Images of a batch that share their draws of RandAugment; one call for each image costs five times more."""


class Augmentation:
    """What ``settings`` add to the augmentation of the data set.

    Args:
        settings: of the training.
        mean, std: (C,) with which the images were normalised, on the [0, 1] scale.
        num_classes: number of labels.
    """

    def __init__(
        self, settings: TrainSettings, mean: Sequence[float], std: Sequence[float], num_classes: int
    ) -> None:
        self.settings, self.mean, self.std, self.num_classes = settings, mean, std, num_classes

    def __call__(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Return augmented images and their targets.

        Args:
            images: (N, C, H, W) float32, normalised.
            labels: (N,) int64.
            seed: of all draws; torch's own generator is left as it was.

        Returns:
            Images of the same shape, and targets: the labels, or (N, classes) float32 shares where images
            are mixed.
        """
        if not self.settings.augments:
            return images, labels
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self._mixed(self._erased(self._ops(images)), labels)

    def _ops(self, images: Tensor) -> Tensor:
        if self.settings.randaugment == 0:
            return images
        from torchvision.transforms import v2

        draw = v2.RandAugment(magnitude=self.settings.randaugment)
        pixels = _pixels(images, self.mean, self.std)
        return normalise(torch.cat([draw(part) for part in pixels.split(GROUP)]), self.mean, self.std)

    def _erased(self, images: Tensor) -> Tensor:
        if self.settings.erasing == 0:
            return images
        from torchvision.transforms import v2

        erase = v2.RandomErasing(self.settings.erasing)
        return torch.stack([erase(image) for image in images])

    def _mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if not self.settings.mixes:
            return images, labels
        from torchvision.transforms import v2

        kinds = ((v2.MixUp, self.settings.mixup), (v2.CutMix, self.settings.cutmix))
        ways = [kind(alpha=alpha, num_classes=self.num_classes) for kind, alpha in kinds if alpha > 0]
        mixed, shares = v2.RandomChoice(ways)(images, labels)
        return mixed, shares


def check_channels(settings: TrainSettings, channels: int) -> None:
    """Refuse RandAugment for images with a number of channels that its changes of colours do not know.

    Raises:
        SettingError: they are neither grey nor RGB.
    """
    if settings.randaugment and channels not in (1, 3):
        raise SettingError(
            f"randaugment={settings.randaugment} changes colours, and the images have {channels} channels: "
            "expected 1 or 3 channels, or randaugment=0"
        )


def cross_entropy(output: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Return the mean cross-entropy in nats.

    Args:
        output: logits (N, outputs).
        targets: labels (N,), or shares (N, classes) of no more classes than there are outputs.
        smoothing: share of the target that is spread over all outputs.
    """
    if targets.ndim == 2 and targets.shape[1] < output.shape[1]:
        targets = F.pad(targets, (0, output.shape[1] - targets.shape[1]))
    return F.cross_entropy(output, targets, label_smoothing=smoothing)


def _pixels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return normalised images (N, C, H, W) as the uint8 that they were made of."""
    centre, scale = (torch.tensor(list(values), dtype=torch.float32)[:, None, None] for values in (mean, std))
    return images.mul(scale).add_(centre).mul_(255).round_().clamp_(0, 255).to(torch.uint8)
