"""Image files to tensors: centre crops in one tensor for evaluation, random crops in batches for training."""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from amc.data.augment import normalise
from amc.data.splits import WHOLE, LabelledImages, Part, TrainBatches, batch_indices
from amc.errors import FileError, UnavailableError, out_of_memory
from amc.progress import progress
from amc.seeds import mix
from amc.third_party import without_warnings

DECODE_BATCH = 64
"""Images that are decoded and normalised at once."""
MAX_PIXELS = 2 * (2**30 // 4 // 3)
"""Pixels of the largest picture that is decoded, about 13,377 x 13,377: Pillow opens no larger one."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "TGA", "ICO", "PCX", "SGI")
"""What is decoded, whatever the suffix says: Pillow runs Ghostscript for others, such as EPS."""
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc", ".tga", ".ico", ".pcx"),
    ".sgi",
)
"""Of the pictures in class folders: all of torchvision's, and what else ``FORMATS`` has."""
LIKELY_WIDE = 4095
"""Grey pictures of 16 or 32 bits with no greater value are likely to hold values of 8 or 12 bits."""
BAR_AFTER_SECONDS = 2.0
IN_MEMORY_BYTES = 8 * 2**30
"""Decoded images beyond this size go to an unlinked temporary file that is mapped into memory."""


@dataclass(frozen=True)
class Decoder:
    """How image files become tensors.

    Attributes:
        image_size: side of the cropped image in pixels.
        resize: shorter side of the image in pixels before the centre crop.
        mean, std: (3,) per channel, on the [0, 1] scale.
        rotate_180: whether every image is turned upside down.
        workers: number of decoding processes; 0 decodes in this process. The result does not depend on it.
        mirror: whether training images are mirrored half of the time.
        min_crop: least share of the area that a random crop shows.
    """

    image_size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rotate_180: bool
    workers: int
    mirror: bool
    min_crop: float

    def evaluation_images(self, paths: Sequence[str], labels: Tensor, description: str) -> LabelledImages:
        """Decode the centre crops of all images.

        Args:
            paths: N image files.
            labels: (N,) int64.
            description: names the images on the progress bar.

        Returns:
            Images (N, 3, image_size, image_size) float32 and their labels.

        Raises:
            FileError: an image cannot be decoded.
            UnavailableError: the decoded images fit neither into memory nor on the disk.
        """
        dataset = _Images(paths, labels, _centre_crop(self.resize, self.image_size), self.rotate_180)
        images = _allocate((len(dataset), 3, self.image_size, self.image_size))
        order = torch.arange(len(dataset)).split(DECODE_BATCH)
        with progress(len(dataset), description, "image", delay=BAR_AFTER_SECONDS) as bar:
            batches = _load(dataset, [index.tolist() for index in order], self.workers)
            for index, (pixels, _) in zip(order, batches, strict=True):
                images[index[0] : index[-1] + 1] = normalise(pixels, self.mean, self.std)
                bar.update(len(index))
        return LabelledImages(images, labels)

    def train_batches(self, paths: Sequence[str], labels: Tensor, batch_size: int) -> TrainBatches:
        """Return the function that decodes random crops of N image files with ``labels`` (N,)."""

        def batches(epoch: int, seed: int, part: Part = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
            indices = [part.of(index) for index in batch_indices(len(labels), batch_size, epoch, seed)]
            crop = _random_crop(self.image_size, self.min_crop, self.mirror)
            dataset = _Images(paths, labels, crop, self.rotate_180, seed=mix(seed, epoch, 1))
            for images, own in _load(dataset, [index.tolist() for index in indices], self.workers):
                yield normalise(images, self.mean, self.std), own

        return batches


class _Images(Dataset[tuple[Tensor, int]]):
    """Decodes, crops and rotates one image to uint8 (3, S, S); with a seed, (seed, index) draws the crop."""

    def __init__(
        self,
        paths: Sequence[str],
        labels: Tensor,
        crop: Callable[[Any], Tensor],
        rotate_180: bool,
        seed: int | None = None,
    ) -> None:
        self.paths, self.labels = paths, labels.tolist()
        self.crop, self.rotate_180, self.seed = crop, rotate_180, seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = _read(self.paths[index])
        with torch.random.fork_rng(devices=[]):
            if self.seed is not None:
                torch.default_generator.manual_seed(mix(self.seed, index))
            image = self.crop(picture)
        return (image.rot90(2, (1, 2)) if self.rotate_180 else image), self.labels[index]


def picture_size(path: str) -> tuple[int, int] | None:
    """Return width and height of an image file in pixels, or None if it cannot be read."""
    try:
        with _opened(path) as picture:
            return picture.size
    except Exception:  # whatever Pillow raises: `_read` reports it
        return None


def greatest_wide_grey(paths: Sequence[str]) -> int | None:
    """Return the greatest value of the grey pictures of 16 or 32 bits among files; None if there are none."""
    return max((most for path in paths if (most := _greatest_of(path)) is not None), default=None)


def _greatest_of(path: str) -> int | None:
    try:
        with without_warnings(), _opened(path) as picture:
            is_wide = picture.mode[0] == "I" and math.prod(picture.size) <= MAX_PIXELS
            return int(np.asarray(picture).max()) if is_wide else None
    except Exception:  # whatever Pillow raises: `_read` reports it
        return None


def _opened(path: str) -> Any:
    from PIL import Image

    if not os.path.isfile(path):  # a pipe would be waited for, a device has no end
        raise FileError(
            f"{path} is no file; remove it, or leave such pictures out with data.skip_damaged=true"
        )
    return Image.open(path, formats=FORMATS)


def _read(path: str) -> Any:
    """Decode an image file to a picture of 8 bits in red, green and blue.

    Raises:
        FileError: it cannot be decoded, is too large, or its values are of no known range.
    """
    from PIL import Image

    try:
        with without_warnings(), _opened(path) as picture:
            if math.prod(picture.size) > MAX_PIXELS:  # Pillow's own limit can be raised
                raise _too_large(path)
            picture.load()
            return eight_bits(picture, path).convert("RGB")
    except FileError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(path) from error
    except Exception as error:  # a damaged file raises nearly anything
        if out_of_memory(error):
            raise
        raise FileError(
            f"{path} cannot be decoded as an image; the file is probably damaged: remove or replace it, or "
            "leave such files out with data.skip_damaged=true"
        ) from error


def _too_large(path: str) -> FileError:
    return FileError(
        f"{path} has more than the {MAX_PIXELS:,} pixels that are decoded; replace it by a smaller picture, "
        "or leave such pictures out with data.skip_damaged=true"
    )


def is_sound(path: str) -> bool:
    """Whether an image file can be decoded."""
    try:
        _read(path)
    except FileError:
        return False
    return True


def eight_bits(picture: Any, name: str) -> Any:
    """Return a grey picture of 16 bits as one of 8 bits, and others as they are; messages call it ``name``.

    Pillow would cut off such values at 255.

    Raises:
        FileError: the values are of no known range.
    """
    if picture.mode[0] not in "IF":
        return picture
    from PIL import Image

    values, floating = np.asarray(picture), picture.mode == "F"
    least, most, top = values.min(), values.max(), 255 if floating else 65535
    if not 0 <= least <= most <= top or (floating and 0 < most <= 1):
        raise FileError(
            f"{name}: grey values from {least:g} to {most:g} in mode {picture.mode}, expected 0 to {top}; "
            "save the pictures with 8 or 16 bits"
        )
    return picture if floating else Image.fromarray(np.round(values / 257).astype(np.uint8))


def _centre_crop(resize: int, image_size: int) -> Callable[[Any], Tensor]:
    from torchvision import transforms

    return transforms.Compose(
        [transforms.Resize(resize), transforms.CenterCrop(image_size), transforms.PILToTensor()]
    )


def _random_crop(image_size: int, min_crop: float, mirror: bool) -> Callable[[Any], Tensor]:
    from torchvision import transforms

    crop = transforms.RandomResizedCrop(image_size, scale=(min_crop, 1.0))
    mirrored = [transforms.RandomHorizontalFlip()] if mirror else []
    return transforms.Compose([crop, *mirrored, transforms.PILToTensor()])


def _load(dataset: _Images, batches: list[list[int]], workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images (B, 3, S, S) uint8 and labels (B,) for each list of indices."""
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        generator=torch.Generator().manual_seed(0),
        multiprocessing_context=_process_starter() if workers else None,
    )
    try:
        yield from loader
    except FileError as error:  # from a worker process, the message is the last line of a traceback
        message = str(error).strip().splitlines()[-1].removeprefix("amc.errors.FileError: ")
        raise FileError(message) from None


def _process_starter() -> BaseContext:
    """Return how decoding processes start: not as copies of this one, which has threads.

    A copy of a process with threads may hold a lock for ever. The server that forks them has none; it imports
    PyTorch once for all of them.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torchvision.transforms", "PIL.Image"])
    return context


def _allocate(shape: tuple[int, ...]) -> Tensor:
    """Return an uninitialised float32 tensor; a huge one (ImageNet's val is 30 GB) is backed by the disk."""
    count = math.prod(shape)
    if 4 * count <= IN_MEMORY_BYTES:
        return torch.empty(shape)
    folder, gib = tempfile.gettempdir(), 4 * count / 2**30
    if shutil.disk_usage(folder).free < 4 * count:
        raise UnavailableError(
            f"{shape[0]} decoded images need {gib:.0f} GiB, more than {folder} has free; point TMPDIR to a "
            "larger disk"
        )
    with tempfile.NamedTemporaryFile(prefix="amc-images-") as file:
        return torch.from_file(file.name, shared=True, size=count, dtype=torch.float32).view(shape)
