"""Small data sets as files."""

import pickle

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def cifar_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("cifar")
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 40, 3072), dtype=np.uint8)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for name, batch in zip(names, pixels, strict=True):
        content = {"data": batch, "labels": [index % 10 for index in range(40)]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return root


@pytest.fixture(scope="module")
def image_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    draws = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 4), ("mine", 5)):
        for name in ("ant", "bee", "cow"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = draws.integers(0, 256, (20, 26, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root
