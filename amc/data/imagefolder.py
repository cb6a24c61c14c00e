"""Folders of images, one per class, as ImageNet is laid out (`torchvision.datasets.ImageFolder`)."""

from __future__ import annotations

import functools
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from amc.data.augment import normalise
from amc.data.splits import (
    SPLIT_SEED,
    LabelledImages,
    Splits,
    batch_indices,
    channel_statistics,
    fingerprint,
    hold_out,
    pick_from,
    require_positive,
    steps_per_epoch,
)
from amc.errors import AmcError
from amc.seeds import mix

DECODE_BATCH = 64
BAR_AFTER_SECONDS = 2.0
IN_MEMORY_BYTES = 8 * 2**30
"""Decoded images beyond this go to an unlinked temporary file that is mapped into memory."""


def imagefolder(
    *,
    root: str | Path,
    train: str = "train",
    test: str = "val",
    search_val_dir: str | None = None,
    batch_size: int = 256,
    image_size: int = 224,
    resize: int = 256,
    search_val: int = 2000,
    calibration: int = 500,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
    rotate_180: bool = False,
    allow_empty: bool = False,
    workers: int = 0,
    seed: int = 0,
) -> Splits:
    """Build the folders `train`, `test` and, if given, `search_val_dir` under `root`.

    Class numbers are the places of the sorted folder names, which must agree between the folders. Without
    `search_val_dir` the `search_val` images are held out of `train`; `search_val_dir` may be `test`, if the
    report says so. `seed` chooses the calibration images only. Evaluation: the shorter side scaled to
    `resize`, the middle `image_size`; training: RandomResizedCrop and mirror. `rotate_180` turns every image
    upside down, as some networks converted from TensorFlow want it. `allow_empty` lets class folders be
    empty. The result does not depend on `workers`, the number of decoding processes.
    """
    require_positive(batch_size=batch_size, image_size=image_size)
    if resize < image_size:
        raise AmcError(
            f"data.resize={resize} is below data.image_size={image_size}: expected at least as much"
        )
    means, stds = channel_statistics(mean, std)
    train_list = _list(Path(root) / train, "train", allow_empty)
    test_list = _same_classes(_list(Path(root) / test, "test", allow_empty), train_list)
    if search_val_dir is None:
        held, kept = hold_out(train_list.labels, search_val, name="search_val", of=str(train_list.folder))
        search_list, train_list = train_list.take(held), train_list.take(kept)
    else:
        found = _same_classes(_list(Path(root) / search_val_dir, "search_val_dir", allow_empty), train_list)
        picked = pick_from(
            found.labels, search_val, mix(SPLIT_SEED, "search_val"), name="search_val", of=str(found.folder)
        )
        search_list = found.take(picked)
    picked = pick_from(
        train_list.labels, calibration, mix(seed), name="calibration", of=f"{train_list.folder} (training)"
    )

    def decode(listing: _Listing, what: str) -> LabelledImages:
        dataset = _Images(listing, _centre_crop(resize, image_size), rotate_180)
        return _decode(dataset, image_size, means, stds, workers, what)

    def train_batches(epoch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        indices = batch_indices(len(train_list.labels), batch_size, epoch, seed)
        dataset = _Images(train_list, _random_crop(image_size), rotate_180, seed=mix(seed, epoch, 1))
        for images, labels in _load(dataset, [index.tolist() for index in indices], workers):
            yield normalise(images, means, stds), labels

    calibration_images = decode(train_list.take(picked), "calibration images")
    search_images = decode(search_list, "search images")
    return Splits(
        name="imagefolder",
        num_classes=len(train_list.classes),
        input_shape=(3, image_size, image_size),
        mean=means,
        std=stds,
        calibration=calibration_images,
        search_val=search_images,
        train_batches=train_batches,
        steps_per_epoch=steps_per_epoch(len(train_list.labels), batch_size),
        test=functools.cache(lambda: decode(test_list, "test images")),
        fingerprint=fingerprint(calibration_images, search_images),
    )


@dataclass(frozen=True, eq=False)
class _Listing:
    """Image files below one folder, with the class number of each."""

    folder: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: Tensor

    def take(self, index: Tensor) -> _Listing:
        """Return the listing of the images at `index` (M,)."""
        return _Listing(
            self.folder, self.classes, tuple(self.paths[i] for i in index.tolist()), self.labels[index]
        )


def _list(folder: Path, key: str, allow_empty: bool) -> _Listing:
    from torchvision.datasets import ImageFolder

    if not folder.is_dir():
        raise AmcError(
            f"no folder {folder}: expected one sub-folder per class there; check data.root and data.{key}"
        )
    try:
        found = ImageFolder(str(folder), allow_empty=True)
    except FileNotFoundError as error:
        raise AmcError(
            f"{folder} holds no class folders: expected one sub-folder of images per class; check data.{key}"
        ) from error
    if not found.samples:
        raise AmcError(
            f"{folder} has {len(found.classes)} class folders but not one image: expected files such as "
            ".jpg or .png"
        )
    labels = torch.tensor([label for _, label in found.samples])
    empty = (torch.bincount(labels, minlength=len(found.classes)) == 0).nonzero().flatten().tolist()
    if empty and not allow_empty:
        raise AmcError(
            f"class folder {folder / found.classes[empty[0]]} has no image ({len(empty)} of "
            f"{len(found.classes)} are empty): the copy is probably incomplete; data.allow_empty=true keeps "
            "the class numbers and goes on"
        )
    return _Listing(folder, tuple(found.classes), tuple(path for path, _ in found.samples), labels)


def _same_classes(listing: _Listing, reference: _Listing) -> _Listing:
    if listing.classes != reference.classes:
        odd = sorted(set(listing.classes) ^ set(reference.classes))[0]
        raise AmcError(
            f"{listing.folder} has {len(listing.classes)} class folders, {reference.folder} has "
            f"{len(reference.classes)} (for one, {odd!r} is in one only): expected the same names in both"
        )
    return listing


class _Images(Dataset[tuple[Tensor, int]]):
    """Decodes, crops and turns one image, uint8 (3,S,S); with a `seed`, (seed, index) draws the crop."""

    def __init__(
        self, listing: _Listing, crop: Callable[[Any], Tensor], rotate_180: bool, seed: int | None = None
    ) -> None:
        self.paths, self.labels = listing.paths, listing.labels.tolist()
        self.crop, self.rotate_180, self.seed = crop, rotate_180, seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from torchvision.datasets.folder import pil_loader

        try:
            picture = pil_loader(self.paths[index])
        except (OSError, SyntaxError) as error:
            raise AmcError(
                f"{self.paths[index]} cannot be decoded as an image; the file is probably damaged, remove "
                "or replace it"
            ) from error
        with torch.random.fork_rng(devices=[]):
            if self.seed is not None:
                torch.default_generator.manual_seed(mix(self.seed, index))
            image = self.crop(picture)
        return (image.rot90(2, (1, 2)) if self.rotate_180 else image), self.labels[index]


def _centre_crop(resize: int, image_size: int) -> Callable[[Any], Tensor]:
    from torchvision import transforms

    return transforms.Compose(
        [transforms.Resize(resize), transforms.CenterCrop(image_size), transforms.PILToTensor()]
    )


def _random_crop(image_size: int) -> Callable[[Any], Tensor]:
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.RandomResizedCrop(image_size),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )


def _load(dataset: _Images, batches: list[list[int]], workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    loader = DataLoader(
        dataset, batch_sampler=batches, num_workers=workers, generator=torch.Generator().manual_seed(0)
    )
    try:
        yield from loader
    except AmcError as error:  # from a worker process it arrives wrapped in a traceback
        raise AmcError(str(error).strip().splitlines()[-1].removeprefix("amc.errors.AmcError: ")) from None


def _decode(
    dataset: _Images,
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    workers: int,
    what: str,
) -> LabelledImages:
    images = _allocate((len(dataset), 3, image_size, image_size))
    order = torch.arange(len(dataset)).split(DECODE_BATCH)
    with tqdm(total=len(dataset), desc=what, leave=False, disable=None, delay=BAR_AFTER_SECONDS) as bar:
        batches = _load(dataset, [index.tolist() for index in order], workers)
        for index, (pixels, _) in zip(order, batches, strict=True):
            images[index[0] : index[-1] + 1] = normalise(pixels, mean, std)
            bar.update(len(index))
    return LabelledImages(images, torch.tensor(dataset.labels))


def _allocate(shape: tuple[int, ...]) -> Tensor:
    """Return an uninitialised float32 tensor; a huge one (ImageNet's val is 30 GB) is backed by disk."""
    count = math.prod(shape)
    if 4 * count <= IN_MEMORY_BYTES:
        return torch.empty(shape)
    folder, gib = tempfile.gettempdir(), 4 * count / 2**30
    if shutil.disk_usage(folder).free < 4 * count:
        raise AmcError(
            f"{shape[0]} decoded images need {gib:.0f} GiB, more than {folder} has free; point TMPDIR to a "
            "larger disk"
        )
    with tempfile.NamedTemporaryFile(prefix="amc-images-") as file:
        return torch.from_file(file.name, shared=True, size=count, dtype=torch.float32).view(shape)
