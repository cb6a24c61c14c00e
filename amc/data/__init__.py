"""Data sets, each split into training, calibration, search and test images.

- ``splits.py``: ``Splits``, the form of every data set here, and the functions that build it.
- ``picking.py``: which images are held out of training, or picked.
- ``mixing.py``: the order of images that a caller gives.
- ``augment.py``: image operations on whole batches.
- ``views.py``: shifted and mirrored views of the search images.
- ``selection.py``: images that are chosen from a larger pool instead of drawn.
- ``digits.py``, ``cifar.py``, ``synthetic.py``: one data set each; ``files/``: one of image files.
- ``own.py``: a data set of the user's own factory.
- ``pictures.py``: which image files are in which part.

A new data set is one file and one row of ``BUILDERS``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from amc.data.cifar import cifar10
from amc.data.digits import digits
from amc.data.files.imagefolder import imagefolder
from amc.data.own import own
from amc.data.splits import LabelledImages, Splits, check_labels
from amc.data.synthetic import synthetic
from amc.data.views import with_views
from amc.errors import SettingError, did_you_mean
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
        "own": own,
    },
)


def build(name: str, *, search_views: int = 1, **options: Any) -> Splits:
    """Build a data set.

    Args:
        name: a key of ``BUILDERS``.
        search_views: views of every search image (``amc.data.views``); 1 for the images alone. They are
            mirrored where training images are.
        options: keyword arguments of the builder.

    Raises:
        SettingError: an unknown name or option, or a required option is missing.
        AmcError: whatever the builder raises.
    """
    builder = BUILDERS.find(name)
    accepted = inspect.signature(builder).parameters
    for option in options:
        if option not in accepted:
            raise SettingError(
                f"{option} is not an option of data set {name!r}: expected some of {', '.join(accepted)}"
                f"{did_you_mean(option, accepted)}"
            )
    for option, parameter in accepted.items():
        if parameter.default is parameter.empty and options.get(option) is None:
            raise SettingError(f"data.{option} is missing: data set {name!r} needs it")
    mirror = "mirror" in accepted and options.get("mirror", accepted["mirror"].default)
    return with_views(builder(**options), search_views, mirror=mirror)
