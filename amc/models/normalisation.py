"""How the libraries' weights expect images to be normalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from amc.models.names import TORCHVISION

_MEAN_ERROR, _STD_ERROR = 0.005, 0.02
"""Differences that are rounding: of a mean on the [0, 1] scale, and of a standard deviation as a share."""

_HALF = (0.5, 0.5, 0.5)
"""What Google's weights expect; ``transform_input`` turns images that are normalised as others into such."""


@dataclass(frozen=True)
class Normalisation:
    """What is subtracted from images, and what they are divided by then.

    Attributes:
        mean, std: per channel, on the [0, 1] scale.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, mean: Sequence[float], std: Sequence[float]) -> Normalisation:
        """Return it with the values as floats."""
        return cls(tuple(map(float, mean)), tuple(map(float, std)))

    def __str__(self) -> str:
        shown = {name: ",".join(f"{value:.5g}" for value in getattr(self, name)) for name in ("mean", "std")}
        return " ".join(f"data.{name}=[{values}]" for name, values in shown.items())

    def is_near(self, other: Normalisation) -> bool:
        """Whether it is another one up to rounding, or of images with other channels, which none is near."""
        if len(self.mean) != len(other.mean):
            return True
        means = (abs(a - b) <= _MEAN_ERROR for a, b in zip(self.mean, other.mean, strict=True))
        stds = (abs(a - b) <= _STD_ERROR * b for a, b in zip(self.std, other.std, strict=True))
        return all(means) and all(stds)


def detector_normalisation(model: nn.Module) -> Normalisation | None:
    """Return how a ``RawDetector`` leaves out to normalise images itself; None for other networks."""
    if not hasattr(model, "detector"):  # no need to import torchvision, which takes a second
        return None
    from amc.models.detection import RawDetector

    if not isinstance(model, RawDetector):
        return None
    left_out = model.detector.transform
    return Normalisation.of(left_out.image_mean, left_out.image_std)


def pretrained_normalisation(model: nn.Module, name: str) -> Normalisation | None:
    """Return the normalisation of the weights that ``pretrained`` loads; None if their library tells none.

    Args:
        model: the network, as ``amc.models.build`` returns it.
        name: the name that it was built by.
    """
    if (own := detector_normalisation(model)) is not None:
        return own
    if getattr(model, "transform_input", True) is False:  # googlenet and inception_v3 that are told so
        return Normalisation(_HALF, _HALF)
    about = getattr(model, "pretrained_cfg", None)  # of timm
    if about is None:
        about = _preset(name.removeprefix(TORCHVISION))
    mean, std = about.get("mean"), about.get("std")
    return None if mean is None or std is None else Normalisation.of(mean, std)


def _preset(name: str) -> dict[str, Sequence[float]]:
    """Return the settings of torchvision's transform for a network's weights; none if it has no weights."""
    from torchvision import models

    from amc.models.registry import default_weights

    weights = default_weights(name) if name in models.list_models() else None
    return {} if weights is None else vars(weights.transforms())
