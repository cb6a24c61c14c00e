"""Listings of image files: those of a folder with a sub-folder for each class, or of a list of paths."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amc.data.files.decoding import SUFFIXES, is_sound
from amc.data.files.lists import SUFFIX, check_apart, read_list
from amc.errors import FileError
from amc.notes import note_once
from amc.progress import progress

_LEFTOVERS = frozenset({"__MACOSX", "__pycache__", "@eaDir"})
"""Folders of other programs that hold no class; hidden ones, with a dot in front, hold none either."""
_BESIDE = frozenset({"Thumbs.db", "desktop.ini"})
"""Files of other programs whose absence from the listing nobody wonders at."""
_TOLD = 5
"""Suffixes of left-out files that are told."""


@dataclass(frozen=True, eq=False)
class Listing:
    """The N image files below one folder.

    Attributes:
        folder: the folder, or the file that lists them.
        classes: sorted names of its class folders, or of the labels in the file; for labels that are numbers,
            every number from 0 to the largest.
        paths: N image files.
        labels: (N,) int64 class numbers.
    """

    folder: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: Tensor

    def take(self, index: Tensor) -> Listing:
        """Return the listing of the images at ``index`` (M,)."""
        paths = tuple(self.paths[i] for i in index.tolist())
        return Listing(self.folder, self.classes, paths, self.labels[index])


def list_pictures(folder: Path, key: str, *, allow_empty: bool, skip_damaged: bool) -> Listing:
    """List a folder or a file of paths; ``key`` is the setting that names it."""
    if folder.suffix == SUFFIX:
        classes, samples = read_list(folder)
        samples = _sound(folder, samples) if skip_damaged else samples
        if key == "train":
            note_gaps(folder, len(classes), {label for _, label in samples})
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
            f"{folder} has {len(found.classes)} class folders but not one image: expected files with one of "
            f"the suffixes {' '.join(SUFFIXES)}"
        )
    samples = _sound(folder, found.samples) if skip_damaged else found.samples
    labels = torch.tensor([label for _, label in samples])
    empty = (torch.bincount(labels, minlength=len(found.classes)) == 0).nonzero().flatten().tolist()
    if empty and not allow_empty:
        raise FileError(
            f"class folder {folder / found.classes[empty[0]]} has no image ({len(empty)} of "
            f"{len(found.classes)} are empty): the copy is probably incomplete, or its files have none of "
            f"the suffixes {' '.join(SUFFIXES)}; allow_empty=true accepts empty folders and keeps the class "
            "numbers"
        )
    return _listing(folder, found.classes, samples)


def note_gaps(source: Path | str, count: int, found: Collection[int]) -> None:
    """Note classes without an image: labels that begin with 1 are one class too many.

    Args:
        source: what has the images, for the message.
        count: number of classes.
        found: class numbers of the images.
    """
    if gaps := sorted(set(range(count)) - set(found)):
        note_once(
            f"{source} has no image of {len(gaps)} of the classes 0 to {count - 1} (for one, {gaps[0]}): "
            "labels that are numbers are the class numbers themselves"
        )


def _listing(folder: Path, classes: Sequence[str], samples: Sequence[tuple[str, int]]) -> Listing:
    labels = torch.tensor([label for _, label in samples])
    return Listing(folder, tuple(classes), tuple(path for path, _ in samples), labels)


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
    """Return torchvision's listing of a folder without what is hidden; what else is left out is noted.

    Raises:
        FileNotFoundError: there is no class folder.
        FileError: the name of one is not UTF-8.
    """
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import has_file_allowed_extension

    class Visible(ImageFolder):
        def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
            every, _ = super().find_classes(directory)
            classes = [name for name in every if not _is_leftover(name)]
            if not classes:
                raise FileNotFoundError(directory)
            if left := sorted(set(every) - set(classes)):
                note_once(f"{directory}: {', '.join(left)} left out, as no class of images")
            _check_names(directory, classes)
            return classes, {name: number for number, name in enumerate(classes)}

    def is_image(path: str) -> bool:
        inside = Path(path).relative_to(folder).parts
        if any(map(_is_leftover, inside)) or inside[-1] in _BESIDE:
            return False
        if has_file_allowed_extension(path, SUFFIXES):
            return True
        left[Path(path).suffix.lower() or "none"] += 1
        return False

    left: Counter[str] = Counter()
    found = Visible(str(folder), is_valid_file=is_image, allow_empty=True)
    if left:
        told = ", ".join(f"{suffix} ({count})" for suffix, count in left.most_common(_TOLD))
        more = ", ..." if len(left) > _TOLD else ""
        note_once(f"{folder}: {left.total()} files left out, as no pictures by their suffix: {told}{more}")
    return found


def _check_names(folder: str | Path, classes: Sequence[str]) -> None:
    """Refuse names of classes that no exported file can hold."""
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise FileError(
                f"{folder}: the name of the class folder {name!r} is not UTF-8, as exported files need it; "
                "likely cause: unpacked from an archive of another system: rename it"
            ) from error


def holds_class_folders(folder: Path) -> bool:
    """Whether a folder holds folders and no pictures: it is no class, but a part of a data set."""
    if not folder.is_dir():
        return False
    found = [path for path in folder.iterdir() if not _is_leftover(path.name)]
    return any(path.is_dir() for path in found) and not any(path.is_file() for path in found)


def _is_leftover(name: str) -> bool:
    return name.startswith(".") or name in _LEFTOVERS


def same_classes(listing: Listing, reference: Listing) -> Listing:
    """Return a listing with the class numbers of ``reference``; a list of images need not have all classes.

    The numbers go by the names: labels that are whole numbers are sorted by value, folders by name.

    Raises:
        FileError: it has other classes.
    """
    names, known = _named(listing), set(reference.classes)
    lacks = set() if listing.folder.suffix == SUFFIX else _named(reference) - names
    if odd := sorted(names - known) or sorted(lacks):
        having, lacking = (listing, reference) if names - known else (reference, listing)
        raise FileError(
            f"{having.folder} has the class {odd[0]!r}, which {lacking.folder} lacks: expected the same "
            f"names in both; {listing.folder.name} has {len(names)} and {reference.folder.name} "
            f"{len(_named(reference))} classes"
        )
    place = {name: number for number, name in enumerate(reference.classes)}
    labels = [place[listing.classes[label]] for label in listing.labels.tolist()]
    return replace(listing, classes=reference.classes, labels=torch.tensor(labels))


def _named(listing: Listing) -> set[str]:
    """Return the names of a listing's class folders; of a list, those of its images."""
    if listing.folder.suffix != SUFFIX:
        return set(listing.classes)
    return {listing.classes[label] for label in listing.labels.unique().tolist()}


def check_no_picture_in_both(listing: Listing, train: Listing, remedy: str) -> None:
    """Refuse a training image in ``listing``: one that a list names, or the pictures of a folder of both.

    Folders are the same under any name, links included.

    Args:
        listing: of images that networks are judged on.
        train: of the training images.
        remedy: ends the message about a folder.

    Raises:
        FileError: an image is in both.
    """
    if listing.folder.suffix == SUFFIX:
        check_apart(listing.folder, listing.paths, train.folder, train.paths)
    elif train.folder.suffix == SUFFIX:
        check_apart(train.folder, train.paths, listing.folder, listing.paths)
    elif shared := _folders_of(listing) & _folders_of(train):
        raise FileError(
            f"{listing.folder} and {train.folder} both have the pictures of {min(shared)}: expected no image "
            f"in both, as networks would be judged on images that they were trained on; {remedy}"
        )


def _folders_of(listing: Listing) -> set[str]:
    """Return the folders of a listing's pictures, without links."""
    return {os.path.realpath(folder) for folder in {os.path.dirname(path) for path in listing.paths}}
