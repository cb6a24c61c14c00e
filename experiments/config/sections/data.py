"""Sections of the data sets: ``conf/data/NAME.yaml`` declares one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from experiments.config.derive import path


@dataclass
class DataConfig:
    """A data set; ``search_val``, ``unseen`` and ``calibration`` are numbers of its training images.

    Those of ``search_val`` and ``unseen`` are held out of training. A search judges candidates on
    ``search_views`` views of the first (``amc.data.views``); the second are for ``agent.patience``,
    ``agent.select=held_out`` and stage ``proxies``. ``select`` chooses ``select_calibration`` and
    ``select_search_val`` of them with the dense network (``amc.data.selection``). A data set chooses the
    numbers of images that are null.
    """

    name: str = MISSING
    batch_size: int = 128
    image_size: int = 32
    search_val: int | None = 5000
    search_views: int = 1
    unseen: int = 0
    calibration: int | None = 500
    select: str = "random"
    select_calibration: int | None = None
    select_search_val: int | None = None


@dataclass
class DigitsData(DataConfig):
    """Scikit-learn's 1,797 scanned digits; no download."""

    name: str = "digits"
    batch_size: int = 64
    image_size: int = 16
    search_val: int | None = 300
    calibration: int | None = 300


@dataclass
class Cifar10Data(DataConfig):
    """CIFAR-10 from ``root``/cifar-10-batches-py; ``mirror`` mirrors half of the training images."""

    name: str = "cifar10"
    root: str | None = path()
    download: bool = False
    mirror: bool = True
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])


@dataclass
class ImageFolderData(DataConfig):
    """Folders of images in ImageNet's layout under ``root``.

    ``train`` and ``test`` may be csv files there with the columns ``path`` and ``label``. With ``split``, the
    class folders lie in ``root`` itself (or ``train`` lists all images), and this share are test images.
    ``resize`` is the shorter side in pixels before the centre crop to ``image_size``; without it the crop
    shows 0.875 of that side. ``mirror`` mirrors half of the training images. ``min_crop`` is the least share
    of the area that a random crop shows (0.08, and 0.35 for images below 128 pixels). ``skip_damaged`` leaves
    out pictures that cannot be decoded.
    """

    name: str = "imagefolder"
    root: str | None = path()
    train: str = "train"
    test: str = "val"
    split: float | None = None
    search_val_dir: str | None = None
    batch_size: int = 256
    image_size: int = 224
    resize: int | None = None
    search_val: int | None = None
    calibration: int | None = None
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    mirror: bool = True
    min_crop: float | None = None
    rotate_180: bool = False
    allow_empty: bool = False
    skip_damaged: bool = False
    workers: int = 2


@dataclass
class FakeData(DataConfig):
    """Synthetic patterns of any size, for smoke tests."""

    name: str = "fake"
    num_classes: int = 10
    train: int = 512
    test: int = 128
    batch_size: int = 32
    search_val: int | None = 128
    calibration: int | None = 64


@dataclass
class OwnData(DataConfig):
    """What the function at the dotted path ``factory`` returns, called with ``kwargs``: ``amc.data.own``."""

    name: str = "own"
    factory: str = MISSING
    kwargs: dict[str, Any] = field(default_factory=dict)
    search_val: int | None = None
    calibration: int | None = None
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    mirror: bool = True


DATA_SECTIONS = (DigitsData, Cifar10Data, ImageFolderData, FakeData, OwnData)
"""Each is registered as ``base_NAME``."""
