"""CIFAR-10 from the official Python pickles (https://www.cs.toronto.edu/~kriz/cifar.html)."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amc.data.augment import random_flip, random_shift
from amc.data.picking import hold_out_two
from amc.data.splits import RawImages, Splits, channel_statistics, from_memory
from amc.errors import FileError, UnavailableError

FOLDER = "cifar-10-batches-py"
TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_FILE = "test_batch"
CLASSES = (*("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),)
"""Names of the labels, as in ``batches.meta``."""
PAD = 4
"""Pixels of zeros around a training image before its random crop."""


def cifar10(
    *,
    root: str | Path,
    batch_size: int = 128,
    search_val: int = 5000,
    unseen: int = 0,
    calibration: int = 1000,
    image_size: int = 32,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
    seed: int = 0,
    download: bool = False,
    mirror: bool = True,
) -> Splits:
    """Build CIFAR-10 from the folder ``cifar-10-batches-py`` in ``root``.

    Training images are padded by 4 pixels, cropped at random and, with ``mirror``, mirrored half of the time.

    Args:
        search_val, unseen: images held out of the 50,000 training images; independent of ``seed``.
        calibration: number of training images for calibration; ``seed`` chooses them.
        image_size: side in pixels; other than 32, images are resized bilinearly after the augmentation.
        mean, std: per channel (red, green, blue), on the [0, 1] scale.
        download: fetch the data set to ``root`` first.

    Raises:
        SettingError: an impossible size or count.
        FileError: a file is missing or damaged.
        UnavailableError: the download failed.
    """
    means, stds = channel_statistics(mean, std)
    folder = _folder(Path(root).expanduser(), download)
    everything = _read(folder, TRAIN_FILES)
    parts = hold_out_two(everything.labels, search_val, unseen, of="the CIFAR-10 training set")
    return from_memory(
        "cifar10",
        num_classes=10,
        train=everything[parts.rest],
        search_val=everything[parts.search_val],
        unseen=everything[parts.unseen],
        load_test=lambda: _read(folder, (TEST_FILE,)),
        augment=_shift_and_mirror if mirror else _shift,
        mean=means,
        std=stds,
        image_size=image_size,
        batch_size=batch_size,
        calibration=calibration,
        seed=seed,
        class_names=CLASSES,
        rows=parts.rest,
        total=len(everything.labels),
    )


def _shift(images: Tensor, draws: torch.Generator) -> Tensor:
    return random_shift(images, PAD, draws)


def _shift_and_mirror(images: Tensor, draws: torch.Generator) -> Tensor:
    return random_flip(_shift(images, draws), draws)


def _folder(root: Path, download: bool) -> Path:
    folder = root / FOLDER
    if download:
        _download(root)
    missing = [name for name in (*TRAIN_FILES, TEST_FILE) if not (folder / name).is_file()]
    if missing:
        raise FileError(
            f"no {missing[0]} in {folder}: expected the official CIFAR-10 pickles; set data.download=true, "
            f"or unpack cifar-10-python.tar.gz so that {FOLDER} lies in data.root={root}"
        )
    return folder


def _download(root: Path) -> None:
    from torchvision.datasets import CIFAR10

    try:
        CIFAR10(str(root), download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UnavailableError(
            f"could not download CIFAR-10 to {root} ({reason}): expected an internet connection; without "
            f"one, put {FOLDER} there"
        ) from error


class _Unpickler(pickle.Unpickler):
    """Reads the official files without running code from them, and accepts their old NumPy names."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a function that rebuilds NumPy arrays.

        Raises:
            UnpicklingError: the file refers to anything else.
        """
        if (module, name) == ("numpy", "dtype"):
            return lambda code, align=False, copy=False: np.dtype(code, align=bool(align), copy=bool(copy))
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if (module, name) == ("_codecs", "encode"):
            import _codecs

            return _codecs.encode
        raise pickle.UnpicklingError(f"{module}.{name} does not belong in a CIFAR-10 file")


def _read(folder: Path, names: Sequence[str]) -> RawImages:
    batches = [_read_batch(folder / name) for name in names]
    return RawImages(
        torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches])
    )


def _read_batch(path: Path) -> RawImages:
    try:
        with path.open("rb") as file:
            content = _Unpickler(file, encoding="latin1").load()
        pixels, labels = np.asarray(content["data"]), np.asarray(content["labels"], dtype=np.int64)
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3 * 32 * 32):
            raise ValueError(f"pixels {pixels.dtype} {pixels.shape} for {len(labels)} labels")
        if labels.min() < 0 or labels.max() > 9:
            raise ValueError(f"labels {labels.min()}..{labels.max()}")
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        raise FileError(
            f"{path} is not a CIFAR-10 batch ({error}): expected uint8 rows of 3072 and labels 0..9; the "
            "file is probably damaged, unpack it again"
        ) from error
    return RawImages(torch.from_numpy(pixels.copy()).view(-1, 3, 32, 32), torch.from_numpy(labels))
