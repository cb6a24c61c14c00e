"""Data sets, each cut into training, calibration, search and test images."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from amc.data.cifar import cifar10
from amc.data.digits import digits
from amc.data.imagefolder import imagefolder
from amc.data.splits import LabelledImages, Splits, check_labels
from amc.data.synthetic import synthetic
from amc.errors import AmcError

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

BUILDERS: dict[str, Callable[..., Splits]] = {
    "digits": digits,
    "cifar10": cifar10,
    "imagefolder": imagefolder,
    "fake": synthetic,
}


def build(name: str, **options: Any) -> Splits:
    """Build the data set called `name` (a key of `BUILDERS`) with its builder's keyword arguments."""
    if name not in BUILDERS:
        raise AmcError(
            f"data set {name!r} is unknown: expected one of {', '.join(BUILDERS)}{_hint(name, BUILDERS)}"
        )
    accepted = inspect.signature(BUILDERS[name]).parameters
    for option in options:
        if option not in accepted:
            raise AmcError(
                f"data.{option} is not an option of data set {name!r}: expected some of {', '.join(accepted)}"
                f"{_hint(option, accepted)}"
            )
    for option, parameter in accepted.items():
        if parameter.default is parameter.empty and options.get(option) is None:
            raise AmcError(f"data.{option} is missing: data set {name!r} needs it")
    return BUILDERS[name](**options)


def _hint(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=2)
    return f"; did you mean {' or '.join(close)}?" if close else ""
