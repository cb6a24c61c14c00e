"""Lists of image files in place of class folders."""

import pytest
import torch
from PIL import Image

from amc import data
from tests.amc.data.helpers import assert_error

HEAD = "path,label\n"


@pytest.fixture
def photos(tmp_path):
    """Ten pictures of two classes, in class folders and flat."""
    for number in range(10):
        name = ("cat", "dog")[number % 2]
        for folder in (tmp_path / "folders" / name, tmp_path / "flat"):
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (25 * number, 90, 10)).save(folder / f"{number}.png")
    return tmp_path


def listed(folder, numbers, label=("cat", "dog"), name="train.csv"):
    lines = (f"flat/{number}.png,{label[number % 2]}\n" for number in numbers)
    (folder / name).write_text(HEAD + "".join(lines))


def made(root, **options):
    sizes = {"batch_size": 2, "image_size": 12, "resize": 16, "search_val": 2, "calibration": 2}
    return data.imagefolder(root=root, **sizes | options)


def test_a_list_gives_the_images_of_class_folders(photos):
    listed(photos, [0, 2, 4, 6, 8, 1, 3, 5, 7, 9])
    ours, folders = made(photos, train="train.csv", split=0.2), made(photos / "folders", split=0.2)
    assert ours.class_names == folders.class_names == ("cat", "dog")
    for part in ("search_val", "calibration"):
        assert torch.equal(getattr(ours, part).images, getattr(folders, part).images)
        assert torch.equal(getattr(ours, part).labels, getattr(folders, part).labels)
    assert torch.equal(ours.test().images, folders.test().images)


def test_a_test_list_need_not_have_all_classes(photos):
    listed(photos, range(8), label=("10", "9"))
    listed(photos, [9, 9], label=("10", "9"), name="test.csv")
    ours = made(photos, train="train.csv", test="test.csv")
    assert ours.class_names == ("9", "10")
    assert ours.test().labels.tolist() == [0, 0]
    listed(photos, [9], label=("10", "11"), name="test.csv")
    assert_error("the same names in both", made, photos, train="train.csv", test="test.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no column 'path'"),
        ("path,class\nflat/0.png,cat\n", "names no column 'label'"),
        (HEAD, "no line but the first"),
        (HEAD + "flat/0.png\n", r"train\.csv:2.*a value is missing"),
        (HEAD + "gone.png,cat\n", r"gone\.png, which is no file"),
        (HEAD + '"flat/0.png,cat\n', r"train\.csv"),
        (HEAD + "\udcff,cat\n", "utf-8"),
    ],
)
def test_a_damaged_list_is_refused(photos, text, message):
    (photos / "train.csv").write_bytes(text.encode(errors="surrogateescape"))
    assert_error(message, made, photos, train="train.csv", split=0.2)


def test_a_missing_list_is_refused(photos):
    assert_error(r"train\.csv", made, photos, train="train.csv", split=0.2)
