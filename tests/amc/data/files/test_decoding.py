import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from amc.data.files import decoding
from amc.data.files.decoding import _read as decode
from amc.data.files.decoding import is_sound, picture_size
from amc.notes import note_once
from experiments.benchmark.faults.hostile import PICTURES, _png
from tests.amc.data.helpers import assert_error, folders, half_white, plain_folders


def parent_process(picture):
    return torch.tensor([[[os.getppid()]]])


def test_decoding_processes_are_no_copies_of_this_process_which_has_threads(image_root):
    paths = sorted(map(str, (image_root / "val").rglob("*.*")))[:2]
    pictures = decoding._Images(paths, torch.tensor([0, 1]), parent_process, rotate_180=False)
    ((parents, labels),) = decoding._load(pictures, [[0, 1]], workers=1)
    assert labels.tolist() == [0, 1]
    assert os.getpid() not in parents.flatten().tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_imagefolder_damaged_image(workers, tmp_path):
    for index in range(4):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / f"{index}.png").write_bytes(b"not a picture")
    options = {"split": 0.25, "search_val": 2, "calibration": 1, "workers": workers}
    assert_error(r"^\S*png cannot be decoded", folders, tmp_path, **options)


@pytest.mark.parametrize("mode", ["I;16", "I", "I;16B"])
def test_grey_pictures_of_16_bits_keep_their_range(mode, tmp_path):
    values = np.linspace(0, 65535, 16 * 16).reshape(16, 16)
    types = {"I;16": np.uint16, "I": np.int32, "I;16B": ">u2"}
    picture = Image.fromarray(values.astype(types[mode]))
    assert picture.mode == mode
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    for index in range(8):
        picture.save(folder / f"{index}.tiff")
    images = plain_folders(tmp_path, resize=16).test().images
    expected = torch.from_numpy(values / 65535).float().expand(3, -1, -1)
    torch.testing.assert_close(images[0], expected, atol=0.5 / 255 + 1e-6, rtol=0)


@pytest.mark.parametrize(("most", "told"), [(255, True), (4095, True), (4096, False), (0, False)])
def test_grey_pictures_of_few_bits_in_many_are_told(most, told, tmp_path, caplog):
    note_once.cache_clear()
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    for index in range(8):
        Image.fromarray(np.full((16, 16), most, np.uint16)).save(folder / f"{index}.png")
    image = plain_folders(tmp_path).test().images[0]
    assert image.max() * 255 == pytest.approx(round(most / 257))
    lines = [line for line in caplog.messages if "become nearly black" in line]
    assert [f"values up to {most}, and 65535 is white" in line for line in lines] == [True] * told


def test_one_limit_for_the_size_of_a_picture(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    path.write_bytes(_png(14_000, 14_000))
    for limit in (Image.MAX_IMAGE_PIXELS, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert_error(r"large\.png has more than the 178,956,970 pixels that are decoded", decode, str(path))


@pytest.mark.parametrize(("values", "expected"), [((0.0, 0.9), "0 to 255"), ((0, 70000), "0 to 65535")])
def test_grey_values_of_another_range_are_refused(values, expected, tmp_path):
    pixels = np.full((16, 16), values[1])
    pixels[0] = values[0]
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    for index in range(8):
        Image.fromarray(pixels.astype(np.float32 if pixels.dtype == float else np.int32)).save(
            folder / f"{index}.tiff"
        )
    assert_error(f"tiff: grey values.*expected {expected}", plain_folders, tmp_path)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "CMYK"])
def test_pictures_of_any_mode_have_three_channels(mode, tmp_path):
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    form = "tiff" if mode == "CMYK" else "png"
    for index in range(8):
        half_white("").convert(mode).save(folder / f"{index}.{form}")
    image = plain_folders(tmp_path).test().images[0]
    assert image.shape == (3, 16, 16)
    assert image[:, 8, 5].tolist() == pytest.approx([0] * 3, abs=0.05)
    assert image[:, 8, 10].tolist() == pytest.approx([1] * 3, abs=0.05)


def test_huge_decoded_sets_lie_on_disk(image_root, monkeypatch):
    reference = folders(image_root).test().images
    monkeypatch.setattr(decoding, "IN_MEMORY_BYTES", 100)
    assert torch.equal(folders(image_root).test().images, reference)
    full = decoding.shutil.disk_usage("/")._replace(free=0)
    monkeypatch.setattr(decoding.shutil, "disk_usage", lambda _: full)
    assert_error("point TMPDIR", folders, image_root)


@pytest.mark.parametrize("name", PICTURES)
def test_whatever_a_picture_raises_is_one_line_with_its_name(name, tmp_path):
    path = tmp_path / "odd.png"
    path.write_bytes(PICTURES[name])
    assert picture_size(str(path)) is None or is_sound(str(path)) in (True, False)
    if not is_sound(str(path)):
        assert_error(
            r"odd\.png (cannot be decoded|has more than the [\d,]+ pixels).*skip_damaged=true",
            decode,
            str(path),
        )


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, Path.mkdir, *(partial(Path.symlink_to, target=to) for to in ("/dev/zero", "missing"))],
)
def test_what_is_no_file_is_neither_waited_for_nor_read_without_end(make, tmp_path):
    path = tmp_path / "odd.png"
    make(path)
    assert picture_size(str(path)) is None
    assert not is_sound(str(path))
    assert_error(r"odd\.png is no file; remove it", decode, str(path))


def test_pictures_that_another_program_would_draw_are_not_opened(tmp_path):
    path = tmp_path / "odd.png"
    Image.new("RGB", (8, 8)).save(path, format="EPS")
    assert picture_size(str(path)) is None
    assert not is_sound(str(path))
