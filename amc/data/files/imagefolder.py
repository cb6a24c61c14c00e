"""The data set of image files: folders, one per class, as ImageNet is laid out, or lists of paths."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from amc.data.files.decoding import LIKELY_WIDE, Decoder, greatest_wide_grey, picture_size
from amc.data.files.listing import (
    Listing,
    check_no_picture_in_both,
    holds_class_folders,
    list_pictures,
    same_classes,
)
from amc.data.files.lists import SUFFIX
from amc.data.picking import (
    FEWEST_JUDGING,
    SEARCH_SHARE,
    SPLIT_SEED,
    check_search_val,
    check_unseen,
    count_or_most,
    hold_out,
    hold_out_two,
    pick_from,
    require_positive,
)
from amc.data.pictures import Pictures
from amc.data.splits import (
    LabelledImages,
    Splits,
    TrainOrder,
    channel_statistics,
    fingerprint,
    steps_per_epoch,
)
from amc.errors import SettingError
from amc.notes import note_once
from amc.seeds import mix

TRAIN, TEST = "train", "val"
"""Folders of ImageNet's layout."""
CENTRE_SHARE = 0.875
"""Share of the shorter side that the centre crop shows: 224 of 256 pixels."""
SEARCH_VAL, CALIBRATION = 2000, 500
"""Images, where that many are there and no other number is asked for."""
SMALL = 128
"""Below this image size in pixels, a crop of ``MIN_CROP`` shows too little."""
MIN_CROP, MIN_CROP_SMALL = 0.08, 0.35
SHOWN = 1 / 3
"""A centre crop of less of the area is noted."""
SIZES_READ = 64
"""Pictures whose sizes are read for that, and whose grey values are."""


def imagefolder(
    *,
    root: str | Path,
    train: str = TRAIN,
    test: str = TEST,
    split: float | None = None,
    search_val_dir: str | None = None,
    batch_size: int = 256,
    image_size: int = 224,
    resize: int | None = None,
    search_val: int | None = None,
    unseen: int = 0,
    calibration: int | None = None,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
    mirror: bool = True,
    min_crop: float | None = None,
    rotate_180: bool = False,
    allow_empty: bool = False,
    skip_damaged: bool = False,
    workers: int = 0,
    seed: int = 0,
) -> Splits:
    """Build the splits from folders of images below ``root``.

    The class number is the index of the class folder among the sorted names; all folders must have the same
    names. Hidden folders and files are left out. Evaluation images are resized so that the shorter side has
    ``resize`` pixels, then cropped at the centre to ``image_size``. Training images are random resized crops
    and, with ``mirror``, mirrored half of the time.

    Args:
        train, test: folders below ``root``, or lists of images there (``amc.data.files.lists``).
        split: share of the images that are the test images; the class folders then lie in ``root`` itself,
            unless ``train`` is a list, and ``test`` is not used.
        resize: in pixels; if None, the crop shows ``CENTRE_SHARE`` of the shorter side.
        min_crop: least share of a picture's area that a random crop shows; if None, ``MIN_CROP``, and
            ``MIN_CROP_SMALL`` for an ``image_size`` below ``SMALL`` pixels.
        search_val_dir: folder of the search images and the unseen ones; without it they are held out of
            ``train``. It may be ``test``, which a report has to say.
        search_val: number of search images; if None, ``SEARCH_VAL``, or fewer where there are few: a fifth of
            the training images, or all that ``search_val_dir`` has beside the unseen ones.
        unseen: number of unseen images.
        calibration: number of training images for calibration; if None, ``CALIBRATION``, or all.
        mean, std: per channel (red, green, blue), on the [0, 1] scale.
        rotate_180: turn every image upside down, as some networks converted from TensorFlow expect it.
        allow_empty: accept class folders without images.
        skip_damaged: leave out pictures that cannot be decoded, and note their number; all are decoded once.
        workers: number of decoding processes; the result does not depend on it. As they import the script
            that asks for them, its code belongs under ``if __name__ == "__main__"``.
        seed: chooses the calibration images.

    Raises:
        SettingError: an impossible size or count, or folders that ``split`` would ignore.
        FileError: a folder is missing, empty, of other classes or that of the training images under another
            name, a list names an image twice or one of the training images, or an image cannot be decoded.
        UnavailableError: the decoded images fit neither into memory nor on the disk.
    """
    require_positive(batch_size=batch_size, image_size=image_size)
    if workers < 0:
        raise SettingError(f"workers={workers}: expected a number of decoding processes, or 0 for none")
    resize, min_crop = _crops(image_size, resize, min_crop)
    means, stds = channel_statistics(mean, std)
    root = Path(root).expanduser()
    listed = functools.partial(list_pictures, allow_empty=allow_empty, skip_damaged=skip_damaged)
    every, test_list = _sources(root, train, test, split, listed)
    if search_val_dir is None:
        search_list, unseen_list, train_list = _hold_out(every, search_val, unseen)
    else:
        own = same_classes(listed(root / search_val_dir, "search_val_dir"), every)
        search_list, unseen_list = _pick_search_images(own, every, search_val, unseen)
        train_list = every
    calibration_list = _pick_calibration(train_list, calibration, seed)

    _check_shown(calibration_list, image_size, resize)
    _check_greys(calibration_list)
    decoder = Decoder(image_size, resize, means, stds, rotate_180, workers, mirror, min_crop)
    calibration_images = _decode(decoder, calibration_list, "calibration images")
    search_images = _decode(decoder, search_list, "search images")
    pictures = Pictures(root, *(part.paths for part in (train_list, search_list, unseen_list, test_list)))
    return Splits(
        name="imagefolder",
        num_classes=len(train_list.classes),
        input_shape=(3, image_size, image_size),
        mean=means,
        std=stds,
        calibration=calibration_images,
        search_val=search_images,
        train_batches=decoder.train_batches(train_list.paths, train_list.labels, batch_size),
        steps_per_epoch=steps_per_epoch(len(train_list.labels), batch_size),
        test=functools.cache(lambda: _decode(decoder, test_list, "test images")),
        fingerprint=fingerprint(calibration_images, search_images),
        unseen=_decode(decoder, unseen_list, "unseen images") if unseen else None,
        class_names=train_list.classes,
        shorter_side=resize,
        upside_down=rotate_180,
        order=TrainOrder(_rows(train_list, every), len(every.paths), batch_size),
        pictures=pictures,
        train_digest=functools.cache(functools.partial(pictures.digest, "train", train_list.labels)),
    )


def _crops(image_size: int, resize: int | None, min_crop: float | None) -> tuple[int, float]:
    """Return ``resize`` in pixels and ``min_crop``, the defaults where None is given.

    Raises:
        SettingError: one of them is impossible.
    """
    resize = round(image_size / CENTRE_SHARE) if resize is None else resize
    min_crop = (MIN_CROP_SMALL if image_size < SMALL else MIN_CROP) if min_crop is None else min_crop
    if not 0 < min_crop <= 1:
        raise SettingError(f"min_crop={min_crop}: expected a share of the area above 0 and up to 1")
    if resize < image_size:
        raise SettingError(f"resize={resize} is below image_size={image_size}: expected at least as much")
    return resize, min_crop


def _sources(
    root: Path, train: str, test: str, split: float | None, listed: Callable[[Path, str], Listing]
) -> tuple[Listing, Listing]:
    """Return all training images and the test images, from two places or, with ``split``, from one."""
    if split is not None:
        _check_used(root, train, test, split)
        return _split(
            listed(root / train, "train") if train.endswith(SUFFIX) else listed(root, "root"), split
        )
    every = listed(root / train, "train")
    test_list = same_classes(listed(root / test, "test"), every)
    remedy = f"data.root={root / train} data.split=0.2 holds a fifth of one folder out as test images"
    check_no_picture_in_both(test_list, every, remedy)
    return every, test_list


def _check_used(root: Path, train: str, test: str, split: float) -> None:
    """Refuse, with ``split``, folders of other parts, which would be ignored or taken for classes.

    Raises:
        SettingError: ``train`` or ``test`` names a folder, or ``root`` has ImageNet's layout.
    """
    if test != TEST:
        raise SettingError(
            f"data.test={test} is not used with data.split={split:g}, which takes the test images from those "
            f"of training; write data.test={TEST} or data.split=null"
        )
    if train.endswith(SUFFIX):
        return
    parts = f"data.split={split:g}, which parts the class folders in data.root"
    if train != TRAIN:
        raise SettingError(
            f"data.train={train} is not used with {parts}; write data.root={root / train} data.train={TRAIN} "
            "or data.split=null"
        )
    if holds_class_folders(root / TRAIN):
        raise SettingError(
            f"{root / TRAIN} is no class for {parts}: it holds folders; write data.root={root / TRAIN}, or "
            "data.split=null to test on data.test"
        )


def _check_shown(listing: Listing, image_size: int, resize: int) -> None:
    """Note a centre crop that shows little of most pictures: they are oblong, or ``resize`` is large."""
    sizes = [size for path in listing.paths[:SIZES_READ] if (size := picture_size(path)) is not None]
    shown = sorted((image_size / resize) ** 2 * min(size) / max(size) for size in sizes)
    if shown and (middle := shown[len(shown) // 2]) < SHOWN:
        example = "x".join(map(str, sizes[0]))
        note_once(
            f"{listing.folder}: the centre crop of {image_size} pixels after data.resize={resize} shows "
            f"{middle:.0%} of most pictures (one has {example} pixels); lower data.resize, or "
            "cut the pictures less oblong"
        )


def _check_greys(listing: Listing) -> None:
    """Note grey pictures that become nearly black: values of few bits that are stored with many."""
    most = greatest_wide_grey(listing.paths[:SIZES_READ])
    if most is not None and 0 < most <= LIKELY_WIDE:
        note_once(
            f"{listing.folder}: grey pictures of 16 or 32 bits have values up to {most}, and 65535 is white: "
            "they become nearly black; likely cause: values of 8 or 12 bits; save such pictures with 8 bits, "
            "or their values times 257 or 16"
        )


def _split(listing: Listing, share: float) -> tuple[Listing, Listing]:
    """Return the training and the test images; these are the same for every seed.

    Raises:
        SettingError: the share is impossible.
    """
    if not 0 < share < 1:
        raise SettingError(f"split={share:g}: expected the share of test images, between 0 and 1")
    count, found = max(1, round(share * len(listing.labels))), len(listing.labels)
    if count >= found:
        raise SettingError(
            f"split={share:g} makes {count} of {found} images of {listing.folder} the test images: expected "
            "fewer, so that some are left to train on; lower data.split"
        )
    held, rest = hold_out(listing.labels, count, name="test", of=str(listing.folder))
    return listing.take(rest), listing.take(held)


def _hold_out(listing: Listing, search_val: int | None, unseen: int) -> tuple[Listing, Listing, Listing]:
    """Return the search images and the unseen ones, held out of the training images, and the rest."""
    share = len(listing.labels) // SEARCH_SHARE
    count = count_or_most(search_val, share, SEARCH_VAL, least=FEWEST_JUDGING)
    parts = hold_out_two(listing.labels, count, unseen, of=str(listing.folder))
    return listing.take(parts.search_val), listing.take(parts.unseen), listing.take(parts.rest)


def _rows(listing: Listing, every: Listing) -> Tensor:
    """Return the positions (N,) int64 of the files of ``listing`` in ``every``."""
    known = {path: row for row, path in enumerate(every.paths)}
    return torch.tensor([known[path] for path in listing.paths])


def _pick_search_images(
    listing: Listing, train: Listing, search_val: int | None, unseen: int
) -> tuple[Listing, Listing]:
    """Return the search images and the unseen ones, picked from a folder of their own."""
    if listing.folder != train.folder:
        remedy = "without data.search_val_dir the search images are held out of training"
        check_no_picture_in_both(listing, train, remedy)
    check_unseen(unseen)
    if search_val is None and unseen > len(listing.labels) - FEWEST_JUDGING:
        raise SettingError(
            f"unseen={unseen}, but {listing.folder} has {len(listing.labels)} images, which the search "
            f"images are taken from, too: expected {FEWEST_JUDGING} fewer at least; lower data.unseen"
        )
    search_val = count_or_most(search_val, len(listing.labels) - unseen, SEARCH_VAL)
    check_search_val(search_val)
    name, seed = "search_val + unseen" if unseen else "search_val", mix(SPLIT_SEED, "search_val")
    picked = pick_from(listing.labels, search_val + unseen, seed, name=name, of=str(listing.folder))
    return listing.take(picked[:search_val]), listing.take(picked[search_val:])


def _pick_calibration(listing: Listing, calibration: int | None, seed: int) -> Listing:
    count = count_or_most(calibration, len(listing.labels), CALIBRATION)
    source = f"{listing.folder} (training)"
    return listing.take(pick_from(listing.labels, count, mix(seed), name="calibration", of=source))


def _decode(decoder: Decoder, listing: Listing, description: str) -> LabelledImages:
    return decoder.evaluation_images(listing.paths, listing.labels, description)
