"""Data sets, each cut into training, calibration, search and test images."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from amc.data.cifar import cifar10
from amc.data.digits import digits
from amc.data.imagefolder import imagefolder
from amc.data.splits import LabelledImages, Splits, check_labels
from amc.data.synthetic import synthetic
from amc.errors import AmcError, did_you_mean
from amc.registry import Registry

__all__ = [
    "BUILDERS",
    "LabelledImages",
    "Splits",
    "build",
    "check_labels",
    "cifar10",
    "digits",
    "imagefolder",
    "synthetic",
]

BUILDERS: Registry[Callable[..., Splits]] = Registry(
    "data set",
    {
        "digits": digits,
        "cifar10": cifar10,
        "imagefolder": imagefolder,
        "fake": synthetic,
    },
)


def build(name: str, **options: Any) -> Splits:
    """Build the data set called `name` (a key of `BUILDERS`) with its builder's keyword arguments."""
    builder = BUILDERS.find(name)
    accepted = inspect.signature(builder).parameters
    for option in options:
        if option not in accepted:
            raise AmcError(
                f"data.{option} is not an option of data set {name!r}: expected some of {', '.join(accepted)}"
                f"{did_you_mean(option, accepted)}"
            )
    for option, parameter in accepted.items():
        if parameter.default is parameter.empty and options.get(option) is None:
            raise AmcError(f"data.{option} is missing: data set {name!r} needs it")
    return builder(**options)
