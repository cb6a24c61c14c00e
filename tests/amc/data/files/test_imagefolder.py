import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from amc import data
from amc.data.files.decoding import SUFFIXES, is_sound
from amc.notes import note_once
from experiments.benchmark.faults.hostile import PICTURES
from tests.amc.data.helpers import (
    assert_error,
    first_batches,
    folders,
    half_white,
    plain_folders,
    rows,
    same,
    save_classes,
)


def test_imagefolder_without_numbers_takes_what_few_pictures_allow(image_root):
    sizes = {"image_size": 8, "batch_size": 4}
    splits = data.imagefolder(root=image_root, **sizes)
    assert (len(splits.search_val), len(splits.calibration)) == (4, 20)  # of 24
    assert splits.held_out == 4
    splits = data.imagefolder(root=image_root, **sizes, search_val_dir="mine", unseen=3)
    assert (len(splits.search_val), len(splits.calibration)) == (12, 24)  # of 15 and 24
    assert splits.held_out == 15


def test_imagefolder_holds_out_of_train(image_root):
    made = folders(image_root)
    assert made.num_classes == 3
    assert torch.bincount(made.search_val.labels).tolist() == [2, 2, 2]
    assert torch.bincount(made.calibration.labels).tolist() == [2, 2, 2]
    assert not rows(made.search_val.images) & rows(made.calibration.images)
    assert (len(made.test()), made.steps_per_epoch) == (12, (24 - 6) // 4)
    images, labels = next(made.train_batches(0, 0))
    assert (images.shape, images.dtype, labels.dtype) == ((4, 3, 12, 12), torch.float32, torch.int64)


def test_imagefolder_centre_crop_and_rotation(image_root):
    plain = folders(image_root, resize=20, mean=[0, 0, 0], std=[1, 1, 1])
    turned = folders(image_root, resize=20, mean=[0, 0, 0], std=[1, 1, 1], rotate_180=True)
    pixels = np.asarray(Image.open(image_root / "val" / "ant" / "0.png"))[4:16, 7:19]
    torch.testing.assert_close(plain.test().images[0], torch.tensor(pixels).permute(2, 0, 1) / 255)
    assert torch.equal(turned.test().images, plain.test().images.flip(2, 3))
    assert torch.equal(next(turned.train_batches(1, 2))[0], next(plain.train_batches(1, 2))[0].flip(2, 3))


def test_imagefolder_search_folder_and_workers(image_root):
    made = folders(image_root, search_val_dir="mine", search_val=9)
    assert made.steps_per_epoch == 24 // 4
    assert torch.bincount(made.search_val.labels).tolist() == [3, 3, 3]
    parallel = folders(image_root, search_val_dir="mine", search_val=9, workers=1)
    assert parallel.fingerprint == made.fingerprint
    assert same(first_batches(parallel, 1, 2), first_batches(made, 1, 2))
    assert_error("search_val=16.*mine has only 15", folders, image_root, search_val_dir="mine", search_val=16)
    same_folder = folders(image_root, search_val_dir="val", search_val=12)
    pictures = [
        {image.numpy().tobytes() for image in part.images}
        for part in (same_folder.search_val, same_folder.test())
    ]
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) == 12


def test_imagefolder_missing_and_empty_folders(image_root, tmp_path):
    assert_error("no folder .*nothing", folders, image_root, train="nothing")
    assert_error("holds no class folders", folders, tmp_path, train=".")
    for name in ("ant", "bee", "cow"):
        (tmp_path / "train" / name).mkdir(parents=True)
    assert_error("not one image", folders, tmp_path, allow_empty=True)
    for index in range(12):
        Image.new("RGB", (16, 16), (index, 0, 0)).save(tmp_path / "train" / "cow" / f"{index}.png")
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    assert_error("class folder .*ant has no image.*2 of 3.*suffixes .jpg", folders, tmp_path)
    made = folders(tmp_path, allow_empty=True)
    assert made.num_classes == 3
    assert made.test().labels.unique().tolist() == [2]


def test_imagefolder_other_bad_inputs(image_root, tmp_path):
    assert_error("search_val=24", folders, image_root, search_val=24)
    assert_error("calibration=19.*only 18", folders, image_root, calibration=19)
    assert_error("^resize=8 is below", folders, image_root, resize=8)
    for name in ("ant", "bee", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (16, 16)).save(tmp_path / name / "0.png")
    assert_error("has the class 'dog', which .*train lacks", folders, image_root, test=str(tmp_path))


@pytest.mark.parametrize("link", ["val", "val/left", "search"])
def test_a_folder_of_both_parts_is_refused_under_any_name(link, tmp_path):
    root = save_classes(tmp_path, half_white)
    (root / "val").mkdir()
    if link == "val/left":
        shutil.copytree(root / "train/right", root / "val/right")
        (root / "val/left").symlink_to(root / "train/left")
    else:
        (root / "val").rmdir()
        (root / link).symlink_to("train")
    if link == "search":
        shutil.copytree(root / "train", root / "val")
        message = "both have the pictures of .*left.*; without data.search_val_dir"
        assert_error(message, plain_folders, root, search_val_dir="search")
        return
    assert_error(
        r"both have the pictures of .*left.*; data\.root=.*train data\.split=0\.2", plain_folders, root
    )
    assert_error("both have the pictures of", plain_folders, root, test="train")


def test_unseen_images_that_leave_none_to_search_are_refused(image_root):
    message = r"^unseen=14, but .*mine has 15 images.*lower data\.unseen"
    assert_error(message, data.imagefolder, root=image_root, search_val_dir="mine", unseen=14)


def test_pictures_of_other_suffixes_are_read_or_counted(tmp_path, caplog):
    note_once.cache_clear()
    root = save_classes(tmp_path, half_white)
    reference = plain_folders(root)
    assert caplog.messages == []
    for suffix in ("jfif", "gif", "JPE"):
        half_white("").save(root / "train/left" / f"more.{suffix}", "GIF" if suffix == "gif" else "JPEG")
    for name in ("a.HEIC", "b.heic", "notes", ".hidden.txt", "Thumbs.db"):
        (root / "train/left" / name).write_bytes(b"")
    assert plain_folders(root).order.total == reference.order.total + 3
    (line,) = caplog.messages
    assert line.endswith("train: 3 files left out, as no pictures by their suffix: .heic (2), none (1)")
    assert set(IMG_EXTENSIONS) <= set(SUFFIXES)


def test_a_class_folder_whose_name_no_export_can_hold_is_refused(tmp_path):
    root = save_classes(tmp_path, half_white, names=("left", os.fsdecode(b"caf\xe9")))
    assert_error(r"class folder 'caf\\udce9' is not UTF-8", plain_folders, root)


def test_what_a_split_would_ignore_is_refused(image_root):
    assert_error(r"image.*train is no class.*write data\.root=.*train", folders, image_root, split=0.2)
    inner = image_root / "train"
    assert_error("data.test=mine is not used with data.split=0.2", folders, inner, split=0.2, test="mine")
    message = r"data\.train=mine is not used with data\.split=0\.2.*write data\.root=.*mine"
    assert_error(message, folders, image_root, split=0.2, train="mine")
    assert_error("split=0.99 makes 24 of 24 images.*lower data.split", folders, inner, split=0.99)
    assert folders(inner, split=0.2).num_classes == 3


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "car"):
        (tmp_path / name).mkdir()
        for index in range(12):
            Image.new("RGB", (16, 16), (index, 0, 0)).save(tmp_path / name / f"{index}.png")
    assert folders(tmp_path, split=0.2).class_names == ("car", "train")


def test_a_negative_number_of_decoding_processes_is_refused(image_root):
    assert_error("workers=-1: expected a number of decoding processes", folders, image_root, workers=-1)


def test_resize_follows_the_image_size_unless_it_is_given(tmp_path):
    root = save_classes(tmp_path, half_white)
    corner = plain_folders(root).test().images[0, 0, 0, 0]
    assert corner == pytest.approx(128 / 255, abs=0.01)  # the whole picture but for a narrow margin
    patch = plain_folders(root, resize=64).test().images[0]
    assert patch.unique().tolist() == [0, 1]  # the middle only
    large = data.imagefolder(root=root, search_val=2, calibration=2)
    given = data.imagefolder(root=root, search_val=2, calibration=2, resize=256)
    assert large.fingerprint == given.fingerprint
    assert large.input_shape == (3, 224, 224)


def test_a_crop_that_shows_little_of_the_pictures_is_noted_once(tmp_path, caplog):
    note_once.cache_clear()
    root = save_classes(tmp_path, lambda _: Image.new("L", (96, 24)))
    for _ in range(2):
        plain_folders(root)
    plain_folders(save_classes(tmp_path / "square", half_white))
    (record,) = caplog.records
    assert "shows 20% of most pictures (one has 96x24 pixels)" in record.message
    plain_folders(save_classes(tmp_path / "square", half_white), resize=64)
    assert "data.resize=64 shows 6%" in caplog.records[1].message


def test_mirroring_and_the_least_crop_are_settings(tmp_path, cifar_root):
    root = save_classes(tmp_path, half_white)

    def lefts(made):
        """Brightness of the left and the right half of each training image."""
        images = torch.cat([images for epoch in range(6) for images, _ in made.train_batches(epoch, 0)])
        return images[..., :8].mean((1, 2, 3)), images[..., 8:].mean((1, 2, 3))

    left, right = lefts(plain_folders(root, mirror=False, min_crop=1.0))
    assert (left < right).all()
    left, right = lefts(plain_folders(root, min_crop=1.0))
    assert (left < right).any()
    assert (left > right).any()
    small, least = (plain_folders(root, mirror=False, min_crop=share) for share in (None, 0.35))
    assert same(first_batches(small, 0, 0), first_batches(least, 0, 0))
    assert_error("^min_crop=0:", plain_folders, root, min_crop=0)
    options = {"root": cifar_root, "search_val": 20, "calibration": 20, "batch_size": 16}
    first, second = (data.cifar10(**options, mirror=mirror) for mirror in (True, False))
    assert first.fingerprint == second.fingerprint
    assert not same(first_batches(first, 0, 0), first_batches(second, 0, 0))


def test_training_pictures_are_known_by_name_size_and_label(tmp_path):
    made = plain_folders(save_classes(tmp_path / "here", half_white))
    moved = plain_folders(shutil.copytree(tmp_path / "here", tmp_path / "there"))
    known = moved.train_digest()
    assert known == made.train_digest()
    changed = moved.pictures.train[-1]
    with open(changed, "ab") as file:
        file.write(b" ")
    moved = plain_folders(tmp_path / "there")
    assert moved.train_digest() != known
    os.remove(changed)
    digest = plain_folders(tmp_path / "here").train_digest
    os.remove(made.pictures.train[0])
    assert_error("cannot be read .No such file", digest)


def test_hidden_folders_and_files_are_no_classes(tmp_path, caplog):
    note_once.cache_clear()
    root = save_classes(tmp_path, half_white)
    reference = plain_folders(root).fingerprint
    for folder in (".ipynb_checkpoints", "__MACOSX", "left/.ipynb_checkpoints"):
        (root / "train" / folder).mkdir()
        half_white("").save(root / "train" / folder / "0-checkpoint.png")
    (root / "train" / "right" / "._0.png").write_bytes(b"no picture")
    made = plain_folders(root)
    assert (made.num_classes, made.fingerprint) == (2, reference)
    (record,) = caplog.records
    assert ".ipynb_checkpoints, __MACOSX left out" in record.message
    (root / "train" / ".only").mkdir()
    assert_error("holds no class folders", plain_folders, root, train="train/left")


def test_a_home_folder_and_umlauts_in_paths_work(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_classes(tmp_path / "Bücher (1)", half_white)
    assert plain_folders("~/Bücher (1)").num_classes == 2


def test_pictures_that_cannot_be_decoded_are_left_out_and_counted(image_root, tmp_path, caplog):
    root = shutil.copytree(image_root, tmp_path / "images")
    whole = folders(root)
    for index, content in enumerate(PICTURES.values()):
        (root / "train/bee" / f"odd{index}.png").write_bytes(content)
    assert_error("odd", lambda: list(folders(root, calibration=12).train_batches(0, 0)))
    left = sum(not is_sound(str(path)) for path in (root / "train/bee").glob("odd*.png"))
    assert left >= len(PICTURES) - 3
    for path in (root / "train/bee").glob("odd*.png"):
        if is_sound(str(path)):
            path.unlink()
    sound = folders(root, skip_damaged=True)
    assert f"{left} of {24 + left} pictures are left out" in caplog.text
    assert torch.equal(sound.search_val.images, whole.search_val.images)
