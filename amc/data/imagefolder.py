"""Image files: folders, one per class, as ImageNet is laid out, or lists of paths."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amc.data.decoding import Decoder, is_sound, picture_size
from amc.data.lists import SUFFIX, check_apart, read_list
from amc.data.pictures import Pictures
from amc.data.splits import (
    SEARCH_SHARE,
    SPLIT_SEED,
    LabelledImages,
    Splits,
    TrainOrder,
    channel_statistics,
    check_unseen,
    count_or_most,
    fingerprint,
    hold_out,
    hold_out_two,
    pick_from,
    require_positive,
    steps_per_epoch,
)
from amc.errors import FileError, SettingError
from amc.notes import note_once
from amc.progress import progress
from amc.seeds import mix

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
"""Pictures whose sizes are read for that."""
_LEFTOVERS = frozenset({"__MACOSX", "__pycache__", "@eaDir"})
"""Folders of other programs that hold no class; hidden ones, with a dot in front, hold none either."""


def imagefolder(
    *,
    root: str | Path,
    train: str = "train",
    test: str = "val",
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
        train, test: folders below ``root``, or lists of images there (``amc.data.lists``).
        split: share of the images that are the test images; the class folders then lie in ``root`` itself,
            unless ``train`` is a list.
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
        SettingError: an impossible size or count.
        FileError: a folder is missing, empty or has other classes, a list names an image twice or one of
            the training images, or an image cannot be decoded.
        UnavailableError: the decoded images fit neither into memory nor on the disk.
    """
    require_positive(batch_size=batch_size, image_size=image_size)
    resize = round(image_size / CENTRE_SHARE) if resize is None else resize
    min_crop = (MIN_CROP_SMALL if image_size < SMALL else MIN_CROP) if min_crop is None else min_crop
    if not 0 < min_crop <= 1:
        raise SettingError(f"min_crop={min_crop}: expected a share of the area above 0 and up to 1")
    if resize < image_size:
        raise SettingError(f"resize={resize} is below image_size={image_size}: expected at least as much")
    means, stds = channel_statistics(mean, std)
    root = Path(root).expanduser()
    listed = functools.partial(_list, allow_empty=allow_empty, skip_damaged=skip_damaged)
    if split is None:
        train_list = listed(root / train, "train")
        test_list = _same_classes(listed(root / test, "test"), train_list)
        _check_apart(test_list, train_list)
    else:
        whole = listed(root / train, "train") if train.endswith(SUFFIX) else listed(root, "root")
        train_list, test_list = _split(whole, split)
    every = train_list
    if search_val_dir is None:
        search_list, unseen_list, train_list = _hold_out(train_list, search_val, unseen)
    else:
        found = _same_classes(listed(root / search_val_dir, "search_val_dir"), train_list)
        if found.folder != train_list.folder:
            _check_apart(found, train_list)
        search_list, unseen_list = _pick_search_images(found, search_val, unseen)
    calibration_list = _pick_calibration(train_list, calibration, seed)

    _check_shown(calibration_list, image_size, resize)
    decoder = Decoder(image_size, resize, means, stds, rotate_180, workers, mirror, min_crop)
    calibration_images = _decode(decoder, calibration_list, "calibration images")
    search_images = _decode(decoder, search_list, "search images")
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
        pictures=Pictures(root, *(part.paths for part in (train_list, search_list, unseen_list, test_list))),
    )


@dataclass(frozen=True, eq=False)
class _Listing:
    """The N image files below one folder.

    Attributes:
        folder: the folder, or the file that lists them.
        classes: sorted names of its class folders, or of the labels in the file.
        paths: N image files.
        labels: (N,) int64 class numbers.
    """

    folder: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: Tensor

    def take(self, index: Tensor) -> _Listing:
        """Return the listing of the images at ``index`` (M,)."""
        paths = tuple(self.paths[i] for i in index.tolist())
        return _Listing(self.folder, self.classes, paths, self.labels[index])


def _list(folder: Path, key: str, *, allow_empty: bool, skip_damaged: bool) -> _Listing:
    """List a folder or a file of paths; ``key`` is the setting that names it."""
    if folder.suffix == SUFFIX:
        classes, samples = read_list(folder)
        samples = _sound(folder, samples) if skip_damaged else samples
        return _listing(folder, classes, samples)
    if not folder.is_dir():
        raise FileError(
            f"no folder {folder}: expected one sub-folder per class there; check data.root and data.{key}"
        )
    try:
        found = _visible(folder)
    except FileNotFoundError as error:
        raise FileError(
            f"{folder} holds no class folders: expected one sub-folder of images per class; check {key!r}"
        ) from error
    if not found.samples:
        raise FileError(
            f"{folder} has {len(found.classes)} class folders but not one image: expected files such as "
            ".jpg or .png"
        )
    samples = _sound(folder, found.samples) if skip_damaged else found.samples
    labels = torch.tensor([label for _, label in samples])
    empty = (torch.bincount(labels, minlength=len(found.classes)) == 0).nonzero().flatten().tolist()
    if empty and not allow_empty:
        raise FileError(
            f"class folder {folder / found.classes[empty[0]]} has no image ({len(empty)} of "
            f"{len(found.classes)} are empty): the copy is probably incomplete; allow_empty=true accepts "
            "empty folders and keeps the class numbers"
        )
    return _listing(folder, found.classes, samples)


def _listing(folder: Path, classes: Sequence[str], samples: Sequence[tuple[str, int]]) -> _Listing:
    labels = torch.tensor([label for _, label in samples])
    return _Listing(folder, tuple(classes), tuple(path for path, _ in samples), labels)


def _sound(folder: Path, samples: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return the files and classes of the pictures that can be decoded; note how many are left out.

    Raises:
        FileError: none can be decoded.
    """
    kept = []
    with progress(len(samples), f"check {folder.name}", "image") as bar:
        for path, label in samples:
            if is_sound(path):
                kept.append((path, label))
            bar.update()
    if not kept:
        raise FileError(f"{folder}: none of its {len(samples)} pictures can be decoded")
    if (left := len(samples) - len(kept)) > 0:
        note_once(f"{folder}: {left} of {len(samples)} pictures are left out, as they cannot be decoded")
    return kept


def _visible(folder: Path) -> Any:
    """Return torchvision's listing of a folder without what is hidden; left-out class folders are noted.

    Raises:
        FileNotFoundError: there is no class folder.
    """
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

    class Visible(ImageFolder):
        def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
            every, _ = super().find_classes(directory)
            classes = [name for name in every if not _is_leftover(name)]
            if not classes:
                raise FileNotFoundError(directory)
            if left := sorted(set(every) - set(classes)):
                note_once(f"{directory}: {', '.join(left)} left out, as no class of images")
            return classes, {name: number for number, name in enumerate(classes)}

    def is_image(path: str) -> bool:
        inside = Path(path).relative_to(folder).parts
        return has_file_allowed_extension(path, IMG_EXTENSIONS) and not any(map(_is_leftover, inside))

    return Visible(str(folder), is_valid_file=is_image, allow_empty=True)


def _is_leftover(name: str) -> bool:
    return name.startswith(".") or name in _LEFTOVERS


def _check_shown(listing: _Listing, image_size: int, resize: int) -> None:
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


def _same_classes(listing: _Listing, reference: _Listing) -> _Listing:
    """Return a listing with the class numbers of ``reference``; a list of images need not have all classes.

    The numbers go by the names: labels that are whole numbers are sorted by value, folders by name.

    Raises:
        FileError: it has other classes.
    """
    names, known = set(listing.classes), set(reference.classes)
    if names == known or (listing.folder.suffix == SUFFIX and names < known):
        places = torch.tensor([reference.classes.index(name) for name in listing.classes])
        return replace(listing, classes=reference.classes, labels=places[listing.labels])
    odd = sorted(names ^ known)[0]
    raise FileError(
        f"{listing.folder} has {len(listing.classes)} class folders, {reference.folder} has "
        f"{len(reference.classes)} (for one, {odd!r} is in one only): expected the same names in both"
    )


def _check_apart(listing: _Listing, train: _Listing) -> None:
    """Refuse a training image in ``listing`` if one of both is a list; folders hold their own images.

    Raises:
        FileError: an image is in both.
    """
    if listing.folder.suffix == SUFFIX:
        check_apart(listing.folder, listing.paths, train.folder, train.paths)
    elif train.folder.suffix == SUFFIX:
        check_apart(train.folder, train.paths, listing.folder, listing.paths)


def _split(listing: _Listing, share: float) -> tuple[_Listing, _Listing]:
    """Return the training and the test images; these are the same for every seed.

    Raises:
        SettingError: the share is impossible.
    """
    if not 0 < share < 1:
        raise SettingError(f"split={share:g}: expected the share of test images, between 0 and 1")
    count = max(1, round(share * len(listing.labels)))
    held, rest = hold_out(listing.labels, count, name="test", of=str(listing.folder))
    return listing.take(rest), listing.take(held)


def _hold_out(listing: _Listing, search_val: int | None, unseen: int) -> tuple[_Listing, _Listing, _Listing]:
    """Return the search images and the unseen ones, held out of the training images, and the rest."""
    count = count_or_most(search_val, len(listing.labels) // SEARCH_SHARE, SEARCH_VAL)
    parts = hold_out_two(listing.labels, count, unseen, of=str(listing.folder))
    return listing.take(parts.search_val), listing.take(parts.unseen), listing.take(parts.rest)


def _rows(listing: _Listing, every: _Listing) -> Tensor:
    """Return the positions (N,) int64 of the files of ``listing`` in ``every``."""
    known = {path: row for row, path in enumerate(every.paths)}
    return torch.tensor([known[path] for path in listing.paths])


def _pick_search_images(listing: _Listing, search_val: int | None, unseen: int) -> tuple[_Listing, _Listing]:
    """Return the search images and the unseen ones, picked from a folder of their own."""
    check_unseen(unseen)
    search_val = count_or_most(search_val, len(listing.labels) - unseen, SEARCH_VAL)
    require_positive(search_val=search_val)
    name, seed = "search_val + unseen" if unseen else "search_val", mix(SPLIT_SEED, "search_val")
    picked = pick_from(listing.labels, search_val + unseen, seed, name=name, of=str(listing.folder))
    return listing.take(picked[:search_val]), listing.take(picked[search_val:])


def _pick_calibration(listing: _Listing, calibration: int | None, seed: int) -> _Listing:
    count = count_or_most(calibration, len(listing.labels), CALIBRATION)
    source = f"{listing.folder} (training)"
    return listing.take(pick_from(listing.labels, count, mix(seed), name="calibration", of=source))


def _decode(decoder: Decoder, listing: _Listing, description: str) -> LabelledImages:
    return decoder.evaluation_images(listing.paths, listing.labels, description)
