"""A data set of the user's own factory: splits, or two data sets of torchvision's or Hugging Face's form."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amc.data.augment import random_flip, random_shift
from amc.data.files.decoding import eight_bits
from amc.data.files.listing import note_gaps
from amc.data.files.lists import MOST_CLASSES
from amc.data.mixing import mixed
from amc.data.picking import FEWEST_JUDGING, SEARCH_SHARE, count_or_most, hold_out_two
from amc.data.splits import RawImages, Splits, channel_statistics, fingerprint, from_memory
from amc.dotted import imported
from amc.errors import AmcError, SettingError, brief, out_of_memory
from amc.notes import note_once

SEARCH_VAL, CALIBRATION = 1000, 500
"""Images, where that many are there and no other number is asked for."""
IMAGE_SIZE, BATCH_SIZE = 32, 128
"""In pixels, and in images."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_IMAGE, _LABEL = ("image", "img", "pixel_values"), ("label", "labels", "fine_label")
"""Keys of the entries of Hugging Face's data sets."""


def own(
    *,
    factory: str,
    kwargs: Mapping[str, Any] | None = None,
    image_size: int = IMAGE_SIZE,
    batch_size: int = BATCH_SIZE,
    search_val: int | None = None,
    unseen: int = 0,
    calibration: int | None = None,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    mirror: bool = True,
    seed: int = 0,
) -> Splits:
    """Build the splits from what a factory returns.

    Args:
        factory: dotted path of a function. It returns ``Splits``, which are taken as they are: other settings
            than the defaults have to be theirs, and ``mirror`` is about views alone. Only calibration and
            search images that come class by class are put in a mixed order. Or it returns a pair of
            data sets (training, test). Each has a length, and its entries are pairs of an image and a
            label, or objects with ``image`` and ``label``. An image is a picture of PIL, or an array or
            tensor of bytes, (H, W), (H, W, 3) or (3, H, W). If both name their classes, they name the same.
        kwargs: passed to the factory.
        image_size: in pixels; whole pictures are scaled to it and kept in memory.
        search_val, unseen: images held out of the training images; without a number for the search,
            ``SEARCH_VAL``, or a fifth of the images if those are fewer.
        calibration: number of training images for calibration, without one ``CALIBRATION``, or all;
            ``seed`` chooses them.
        mean, std: per channel (red, green, blue), on the [0, 1] scale.
        mirror: mirror half of the training images, which are also shifted by up to 1/8.

    Raises:
        SettingError: an impossible size or count, or the factory or its data sets return something else.
        AmcError: the factory or one of its data sets fails.
    """
    make = imported(factory, "data.factory")
    try:
        made = make(**(kwargs or {}))
    except Exception as error:
        raise AmcError(
            f"data.factory={factory} failed with {dict(kwargs or {})}: {type(error).__name__}: {error}"
        ) from error
    if isinstance(made, Splits):
        _check_counts(factory, made, search_val=search_val, calibration=calibration, unseen=unseen or None)
        _check_settings(factory, made, image_size=image_size, batch_size=batch_size, mean=mean, std=std)
        if not mirror:
            note_once(
                f"data.mirror=false is about views of the search images alone: data.factory={factory} "
                "returned Splits, which are taken as they are"
            )
        return _in_mixed_order(made)
    if not isinstance(made, tuple | list) or len(made) != 2:
        raise SettingError(
            f"data.factory={factory} returned {type(made).__name__}; expected Splits, or two data sets: "
            "training and test"
        )
    means, stds = channel_statistics(mean, std)
    read = functools.partial(_in_memory, factory, size=image_size)
    train, names = read(made[0]), _class_names(made[0])
    _check_names(factory, names, _class_names(made[1]))
    classes = max(len(names), int(train.labels.max()) + 1)
    note_gaps(f"the training data set of data.factory={factory}", classes, set(train.labels.tolist()))
    _check_first(factory, made[1], image_size, classes)
    share = len(train.labels) // SEARCH_SHARE
    search_val = count_or_most(search_val, share, SEARCH_VAL, least=FEWEST_JUDGING)
    parts = hold_out_two(train.labels, search_val, unseen, of="the training data set")

    def augment(images: Tensor, draws: torch.Generator) -> Tensor:
        shifted = random_shift(images, image_size // 8, draws)
        return random_flip(shifted, draws) if mirror else shifted

    return from_memory(
        factory,
        num_classes=classes,
        train=train[parts.rest],
        search_val=train[parts.search_val],
        unseen=train[parts.unseen],
        load_test=functools.partial(read, made[1]),
        augment=augment,
        mean=means,
        std=stds,
        image_size=image_size,
        batch_size=batch_size,
        calibration=count_or_most(calibration, len(parts.rest), CALIBRATION),
        seed=seed,
        class_names=names,
        rows=parts.rest,
        total=len(train.labels),
    )


def _check_counts(factory: str, made: Splits, **asked: int | None) -> None:
    """Refuse numbers of images that splits of the user's own do not have: they are taken as they are."""
    for name, count in asked.items():
        images = getattr(made, name)
        if count is not None and count != (found := 0 if images is None else len(images)):
            raise SettingError(
                f"data.{name}={count}: data.factory={factory} returned Splits, which are taken as they are "
                f"and have {found}; the factory decides: give it settings such as data.kwargs.{name}={count}"
            )


def _check_settings(factory: str, made: Splits, **asked: Any) -> None:
    """Refuse settings beside the defaults that splits of the user's own do not have."""
    batch_size = made.order.batch_size if made.order is not None else None  # None: they do not tell it
    found: dict[str, Any] = {
        "image_size": min(made.input_shape[1:]),
        "batch_size": batch_size,
        "mean": made.mean,
        "std": made.std,
    }
    defaults = {"image_size": IMAGE_SIZE, "batch_size": BATCH_SIZE, "mean": MEAN, "std": STD}
    for name, value in asked.items():
        own = found[name]
        if not _alike(value, defaults[name]) and (own is None or not _alike(value, own)):
            has = "do not tell theirs" if own is None else f"have {_shown(own)}"
            raise SettingError(
                f"data.{name}={_shown(value)}: data.factory={factory} returned Splits, which are taken as "
                f"they are and {has}; the factory decides: leave data.{name} out"
            )


def _in_mixed_order(made: Splits) -> Splits:
    """Return splits whose calibration and search images do not come class by class: parts of them are used.

    Search images that are views of others stay, as their order tells which belong together.
    """
    calibration, search_val = mixed(made.calibration), made.search_val
    if made.search_views == 1:
        search_val = mixed(search_val)
    if calibration is made.calibration and search_val is made.search_val:
        return made
    known = fingerprint(calibration, search_val)
    return replace(made, calibration=calibration, search_val=search_val, fingerprint=known)


def _alike(one: Any, other: Any) -> bool:
    return bool(np.array_equal(np.float32(one), np.float32(other)))


def _shown(value: Any) -> str:
    return f"[{','.join(f'{each:g}' for each in value)}]" if isinstance(value, Sequence) else str(value)


def _in_memory(factory: str, images: Any, size: int) -> RawImages:
    """Return a data set as bytes (N, 3, size, size) and labels (N,).

    Raises:
        SettingError: it is empty or has no length, or an entry is no image with a class number.
        AmcError: an entry cannot be read.
    """
    entries = [_read(factory, images, place, size) for place in range(_length(factory, images))]
    return RawImages(torch.stack([pixels for pixels, _ in entries]), torch.tensor([n for _, n in entries]))


def _check_first(factory: str, images: Any, size: int, classes: int) -> None:
    """Refuse test images whose first one is wrong now, as they are read after all work.

    Raises:
        SettingError: there is none, or it is no image with the number of a class.
        AmcError: it cannot be read.
    """
    _length(factory, images)
    _, label = _read(factory, images, 0, size)
    if label >= classes:
        raise SettingError(
            f"data.factory={factory}: the first label of the test data set is {label}, but those of training "
            f"have the classes 0 to {classes - 1}; expected the same classes in both"
        )


def _length(factory: str, images: Any) -> int:
    """Return the number of entries of a data set.

    Raises:
        SettingError: it is empty or has no length.
    """
    try:
        count = len(images)
    except Exception as error:
        raise SettingError(
            f"data.factory={factory} returned a data set, {type(images).__name__}, that tells no length: "
            f"{brief(error)}; expected one with len(data) and data[number]"
        ) from error
    if not count:
        raise SettingError("a data set of data.factory is empty; expected at least one image in each")
    return int(count)


def _read(factory: str, images: Any, place: int, size: int) -> tuple[Tensor, int]:
    """Return one entry as bytes (3, size, size) and its class number."""
    try:
        image, label = _pair(images[place])
        return _scaled(image, size), _number(label)
    except AmcError:
        raise
    except Exception as error:  # the data set's own code, or a picture that is decoded only now
        if out_of_memory(error):
            raise
        raise AmcError(
            f"data.factory={factory}: entry {place} of its {type(images).__name__} fails: {brief(error)}"
        ) from error


def _pair(entry: Any) -> tuple[Any, Any]:
    if not isinstance(entry, Mapping):
        if not isinstance(entry, Sequence) or len(entry) < 2:
            raise SettingError(
                f"an entry of the data set is a {type(entry).__name__}; expected a pair of an image and a "
                "label, or an object with image and label"
            )
        return entry[0], entry[1]
    image, label = (next((entry[key] for key in keys if key in entry), None) for keys in (_IMAGE, _LABEL))
    if image is None or label is None:
        keys = ", ".join(map(str, entry))
        raise SettingError(f"an entry of the data set has {keys}; expected image and label")
    return image, label


def _number(label: Any) -> int:
    """Return a class number, from 0 to below ``MOST_CLASSES``.

    Raises:
        SettingError: it is none.
    """
    try:
        number = int(label)
        if (isinstance(label, str) or number == label) and 0 <= number < MOST_CLASSES:
            return number
    except (TypeError, ValueError, RuntimeError):  # of torch, for tensors of several values
        pass
    shown = " ".join(repr(label).split())
    raise SettingError(f"a label of the data set is {shown:.60}; expected a class number, from 0")


def _scaled(image: Any, size: int) -> Tensor:
    """Return a picture as bytes (3, size, size)."""
    from PIL import Image

    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        if array.dtype != np.uint8:
            raise SettingError(f"an image has values of {array.dtype}; expected bytes, from 0 to 255")
        array = array.transpose(1, 2, 0) if array.ndim == 3 and len(array) == 3 else array
        if array.ndim not in (2, 3) or array.shape[2:] not in ((), (2,), (3,), (4,)) or not array.size:
            raise SettingError(
                f"an image has the shape {array.shape}; expected (H, W), (H, W, 3) or (3, H, W); a grey one "
                "has no axis of channels"
            )
        image = Image.fromarray(array)
    picture = eight_bits(image, "an image").convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy())


def _class_names(images: Any) -> tuple[str, ...]:
    """Return the names that torchvision's or Hugging Face's data set gives its labels, if any."""
    names = getattr(images, "classes", None)
    for key, feature in (getattr(images, "features", None) or {}).items():
        names = getattr(feature, "names", names) if key in _LABEL else names
    return tuple(map(str, names or ()))


def _check_names(factory: str, train: tuple[str, ...], test: tuple[str, ...]) -> None:
    """Refuse test images whose labels mean other classes.

    Raises:
        SettingError: both data sets name their classes, and not the same in the same order.
    """
    if not train or not test or train == test:
        return
    place = next((n for n, pair in enumerate(zip(train, test, strict=False)) if pair[0] != pair[1]), None)
    odd = (
        f"number {place} is {train[place]!r} in training and {test[place]!r} in test"
        if place is not None
        else f"training has {len(train)} and test has {len(test)}"
    )
    raise SettingError(
        f"data.factory={factory} returned data sets of other classes ({odd}); expected the same names in the "
        "same order, as a label would mean something else"
    )
