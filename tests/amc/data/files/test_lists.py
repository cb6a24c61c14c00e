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
    listed(photos, [9], label=("10", "9"), name="test.csv")
    ours = made(photos, train="train.csv", test="test.csv")
    assert ours.class_names == tuple(map(str, range(11)))
    assert ours.test().labels.tolist() == [9]
    listed(photos, [9], label=("10", "11"), name="test.csv")
    assert_error("the same names in both", made, photos, train="train.csv", test="test.csv")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (("0", "2", "5"), {0, 2, 5}),
        (("2.0", "9.0", "10.0"), {2, 9, 10}),
        ((" 1", " 2 ", " 10"), {1, 2, 10}),
        (("b", "10", " a"), {0, 1, 2}),
    ],
    ids=["gaps", "as pandas writes them", "blanks", "names"],
)
def test_labels_that_are_numbers_are_the_class_numbers(photos, caplog, written, expected):
    lines = (f"flat/{number}.png,{written[number % 3]}\n" for number in range(9))
    (photos / "train.csv").write_text(HEAD + "".join(lines))
    ours = made(photos, train="train.csv", split=0.4, calibration=3)
    assert set(torch.cat([ours.calibration.labels, ours.search_val.labels, ours.test().labels]).tolist()) == (
        expected
    )
    assert ours.num_classes == max(expected) + 1
    assert ("labels that are numbers" in caplog.text) == (len(expected) < ours.num_classes)


def test_folders_and_lists_agree_on_classes_that_are_numbers(photos):
    for number in range(4):
        (photos / "val" / f"0{2 + number % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (7, 7, 7)).save(photos / "val" / f"0{2 + number % 2}" / f"{number}.png")
    listed(photos, range(8), label=("02", "03"))
    assert made(photos, train="train.csv").test().labels.unique().tolist() == [2, 3]
    listed(photos, [8], label=("03", "02"), name="test.csv")
    assert made(photos, train="val", test="test.csv").test().labels.tolist() == [1]
    listed(photos, range(8), label=("02", "04"))
    assert_error(r"train\.csv has the class '04'|val has the class '03'", made, photos, train="train.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no column 'path'"),
        ("path,class\nflat/0.png,cat\n", "names no column 'label'"),
        (HEAD, "no line but the first"),
        (HEAD + "flat/0.png,0\nflat/1.png,-1\n", r"train\.csv:3 has the label -1; expected a class number"),
        (HEAD + "flat/0.png,0\nflat/1.png,0.5\n", r"train\.csv:3 has the label 0\.5"),
        (HEAD + "flat/0.png,20180810\n", r"train\.csv:2 has the label 20180810"),
        (HEAD + "flat/0.png,0\nflat/1.png, \n", r"train\.csv:3 has a blank label"),
        (HEAD + "flat/0.png\n", r"train\.csv:2.*a value is missing"),
        (HEAD + "gone.png,cat\n", r"gone\.png, which is no file"),
        (HEAD + '"flat/0.png,cat\n', r"train\.csv"),
        (HEAD + "\udcff,cat\n", "utf-8"),
        (
            HEAD + "flat/0.png,cat\nflat/1.png,dog\n\nflat/./0.png,cat\n",
            r"train\.csv:5 names.*as line 2 does",
        ),
        (HEAD + "flat/0.png,cat\nflat/../flat/0.png,dog\n", r"train\.csv:3 names.*as line 2 does"),
    ],
)
def test_a_damaged_list_is_refused(photos, text, message):
    (photos / "train.csv").write_bytes(text.encode(errors="surrogateescape"))
    assert_error(message, made, photos, train="train.csv", split=0.2)


def test_a_picture_by_its_whole_path_is_the_same_picture(photos):
    (photos / "train.csv").write_text(f"{HEAD}flat/0.png,cat\n{photos / 'flat' / '0.png'},dog\n")
    assert_error(r"train\.csv:3 names.*as line 2 does", made, photos, train="train.csv", split=0.2)


def test_a_missing_list_is_refused(photos):
    assert_error(r"train\.csv", made, photos, train="train.csv", split=0.2)


def test_an_image_is_in_one_of_the_lists_only(photos):
    listed(photos, range(8))
    listed(photos, [9, 5], name="test.csv")
    message = r"test\.csv:3 names flat/5\.png, which .*train\.csv has too"
    assert_error(message, made, photos, train="train.csv", test="test.csv")
    (photos / "dogs.csv").write_text(HEAD + "folders/cat/0.png,cat\nfolders/dog/1.png,dog\n")
    message_of_folder = r"dogs\.csv:2 names folders/cat/0\.png, which .*folders has too"
    assert_error(message_of_folder, made, photos, train="dogs.csv", test="folders")
    listed(photos, [9], name="other.csv")
    own = {"train": "train.csv", "test": "other.csv"}
    assert_error(message, made, photos, search_val_dir="test.csv", **own)
    assert len(made(photos, search_val_dir="train.csv", **own).search_val) == 2


def test_an_image_is_the_same_in_a_folder_that_is_a_link(photos):
    listed(photos, range(8))
    (photos / "linked").symlink_to("flat")
    (photos / "test.csv").write_text(HEAD + "linked/9.png,dog\nlinked/5.png,dog\n")
    message = r"test\.csv:3 names linked/5\.png, which .*train\.csv has too"
    assert_error(message, made, photos, train="train.csv", test="test.csv")


def test_class_numbers_of_folders_go_by_the_names_in_the_list(tmp_path):
    for number in range(11):
        for place in range(2):
            folder = tmp_path / "val" / str(number)
            folder.mkdir(parents=True, exist_ok=True)
            shade = 20 * number
            Image.new("RGB", (20, 20), (shade, shade, shade)).save(folder / f"{place}.png")
            (tmp_path / "flat").mkdir(exist_ok=True)
            Image.new("RGB", (20, 20), (shade, shade, shade)).save(
                tmp_path / "flat" / f"{number}_{place}.png"
            )
    lines = (f"flat/{number}_{place}.png,{number}\n" for number in range(11) for place in range(2))
    (tmp_path / "train.csv").write_text(HEAD + "".join(lines))
    test = made(tmp_path, train="train.csv", mean=(0, 0, 0), std=(1, 1, 1)).test()
    assert (test.images.mean((1, 2, 3)) * 255 / 20).round().int().tolist() == test.labels.tolist()
