import os
import pickle
import re
import shutil
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from amc import data
from amc.data import augment, decoding, splits
from amc.data.decoding import _read as decode
from amc.data.decoding import is_sound, picture_size
from amc.notes import note_once
from experiments.benchmark.faults.hostile import PICTURES
from tests.amc.data.helpers import assert_error, rows


def first_batches(made, epoch, seed, count=2):
    return [(images, labels) for images, labels in islice(made.train_batches(epoch, seed), count)]


def same(left, right):
    return all(torch.equal(a, b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True))


def folders(root, **options):
    return data.imagefolder(
        root=root,
        **{"batch_size": 4, "image_size": 12, "resize": 16, "search_val": 6, "calibration": 6} | options,
    )


def test_digits_sizes_shapes_and_strata():
    made = data.digits(batch_size=64, search_val=300, calibration=200, seed=0)
    test = made.test()
    assert (len(made.search_val), len(made.calibration), len(test)) == (300, 200, 360)
    assert made.steps_per_epoch == (1797 - 360 - 300) // 64 == len(list(made.train_batches(0, 0)))
    assert made.input_shape == (3, 16, 16) == tuple(test.images.shape[1:])
    assert (made.num_classes, test.images.dtype, test.labels.dtype) == (10, torch.float32, torch.int64)
    for part in (made.search_val, made.calibration, test):
        counts = torch.bincount(part.labels, minlength=10)
        assert counts.max() - counts.min() <= 0.015 * len(part)


def test_digits_splits_are_disjoint_and_calibration_comes_from_train():
    made = data.digits(batch_size=1, search_val=300, calibration=1137, image_size=7)  # size 7: a shift of 0
    train = rows(torch.cat([images for images, _ in made.train_batches(0, 0)]))
    search, test, calibration = (
        rows(part.images) for part in (made.search_val, made.test(), made.calibration)
    )
    assert not search & test
    assert not train & (search | test)
    assert calibration == train
    assert len(train) + len(search) + len(test) > 1790  # a few scans are alike at 7x7


def test_held_out_images_do_not_depend_on_the_seed_but_calibration_does():
    first, second = (data.digits(seed=seed) for seed in (0, 1))
    assert torch.equal(first.search_val.images, second.search_val.images)
    assert torch.equal(first.test().images, second.test().images)
    assert not torch.equal(first.calibration.images, second.calibration.images)
    assert first.fingerprint != second.fingerprint
    assert first.fingerprint == data.digits(seed=0).fingerprint
    assert re.fullmatch("[0-9a-f]{64}", first.fingerprint)


@pytest.mark.parametrize("name", ["digits", "cifar10", "imagefolder", "fake"])
def test_batches_are_a_pure_function_of_epoch_and_seed(name, cifar_root, image_root):
    options = {
        "digits": {},
        "cifar10": {"root": cifar_root, "search_val": 20, "calibration": 20, "batch_size": 16},
        "imagefolder": {
            "root": image_root,
            "search_val": 6,
            "calibration": 6,
            "batch_size": 4,
            "image_size": 12,
        },
        "fake": {"image_size": 8},
    }[name]
    made = data.build(name, seed=0, **options)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    reference = first_batches(made, 3, 7)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(5)
    list(made.train_batches(2, 7))
    assert same(reference, first_batches(made, 3, 7))
    assert not same(reference, first_batches(made, 4, 7))
    assert not same(reference, first_batches(made, 3, 8))
    assert len(list(made.train_batches(0, 0))) == made.steps_per_epoch
    assert made.test() is made.test()


def test_cifar_reads_the_pickles_and_normalises(cifar_root):
    made = data.cifar10(root=cifar_root, batch_size=16, search_val=20, calibration=30)
    assert (len(made.search_val), len(made.calibration), made.steps_per_epoch) == (20, 30, 180 // 16)
    assert torch.bincount(made.search_val.labels).tolist() == [2] * 10
    assert torch.bincount(made.calibration.labels).tolist() == [3] * 10
    content = pickle.loads((cifar_root / "cifar-10-batches-py" / "test_batch").read_bytes())
    expected = content["data"].reshape(-1, 3, 32, 32) / 255.0
    expected = (expected - np.reshape([0.485, 0.456, 0.406], (3, 1, 1))) / np.reshape(
        [0.229, 0.224, 0.225], (3, 1, 1)
    )
    np.testing.assert_allclose(made.test().images.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert made.test().labels.tolist() == content["labels"]


def test_cifar_resizes_and_takes_other_statistics(cifar_root):
    made = data.cifar10(
        root=str(cifar_root), search_val=20, calibration=20, image_size=40, mean=[0, 0, 0], std=[1, 1, 1]
    )
    images, _ = next(made.train_batches(0, 0))
    assert images.shape[1:] == (3, 40, 40) == made.input_shape
    assert made.search_val.images.min() >= 0
    assert made.search_val.images.max() <= 1


def test_cifar_bad_inputs(cifar_root, tmp_path):
    assert_error("data.download=true", data.cifar10, root=tmp_path)
    assert_error("^search_val=200.*fewer", data.cifar10, root=cifar_root, search_val=200)
    assert_error("calibration=500.*only 180", data.cifar10, root=cifar_root, search_val=20, calibration=500)
    assert_error("^mean has 1 values", data.cifar10, root=cifar_root, mean=[0.5])
    assert_error("^std=.*positive", data.cifar10, root=cifar_root, std=[1, 0, 1])
    assert_error("^batch_size=0", data.cifar10, root=cifar_root, search_val=20, batch_size=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02}q", "not a CIFAR-10 batch.*damaged"),
        (pickle.dumps({"labels": [1]}), "'data'"),
        (pickle.dumps({"data": [[1, 2]], "labels": [1]}), "int64"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}), "labels 10"),
        (pickle.dumps(print), "does not belong"),
    ],
)
def test_cifar_damaged_file(content, message, cifar_root, tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for file in (cifar_root / "cifar-10-batches-py").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "data_batch_3").write_bytes(content)
    assert_error(message, data.cifar10, root=tmp_path, search_val=20)


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


def parent_process(picture):
    return torch.tensor([[[os.getppid()]]])


def test_decoding_processes_are_no_copies_of_this_process_which_has_threads(image_root):
    paths = sorted(map(str, (image_root / "val").rglob("*.*")))[:2]
    pictures = decoding._Images(paths, torch.tensor([0, 1]), parent_process, rotate_180=False)
    ((parents, labels),) = decoding._load(pictures, [[0, 1]], workers=1)
    assert labels.tolist() == [0, 1]
    assert os.getpid() not in parents.flatten().tolist()


def test_imagefolder_missing_and_empty_folders(image_root, tmp_path):
    assert_error("no folder .*nothing", folders, image_root, train="nothing")
    assert_error("holds no class folders", folders, tmp_path, train=".")
    for name in ("ant", "bee", "cow"):
        (tmp_path / "train" / name).mkdir(parents=True)
    assert_error("not one image", folders, tmp_path, allow_empty=True)
    for index in range(12):
        Image.new("RGB", (16, 16), (index, 0, 0)).save(tmp_path / "train" / "cow" / f"{index}.png")
    assert_error("class folder .*ant has no image.*2 of 3", folders, tmp_path, test="train")
    made = folders(tmp_path, test="train", allow_empty=True)
    assert made.num_classes == 3
    assert made.test().labels.unique().tolist() == [2]


def test_imagefolder_other_bad_inputs(image_root, tmp_path):
    assert_error("search_val=24", folders, image_root, search_val=24)
    assert_error("calibration=19.*only 18", folders, image_root, calibration=19)
    assert_error("^resize=8 is below", folders, image_root, resize=8)
    for name in ("ant", "bee", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (16, 16)).save(tmp_path / name / "0.png")
    assert_error("'cow' is in one only", folders, image_root, test=str(tmp_path))


@pytest.mark.parametrize("workers", [0, 1])
def test_imagefolder_damaged_image(workers, tmp_path):
    for index in range(4):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / f"{index}.png").write_bytes(b"not a picture")
    options = {"train": ".", "test": ".", "search_val": 1, "calibration": 1, "workers": workers}
    assert_error(r"^\S*png cannot be decoded", folders, tmp_path, **options)


def save_classes(root, make, names=("left", "right"), count=6):
    """Save the pictures ``make(name)`` in the training folder of each class."""
    for name in names:
        (root / "train" / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            make(name).save(root / "train" / name / f"{index}.png")
    return root


def plain_folders(root, **options):
    """The folders of ``root``, images in [0, 1]."""
    sizes = {"search_val": 4, "calibration": 4, "batch_size": 4, "image_size": 16, "test": "train"}
    return data.imagefolder(root=root, **{**sizes, "mean": [0] * 3, "std": [1] * 3} | options)


def half_white(_name):
    """A grey picture of 64 x 64 pixels: a black and a white half, in a frame of 16 grey pixels."""
    pixels = np.full((64, 64), 128, np.uint8)
    pixels[16:48, 16:32], pixels[16:48, 32:48] = 0, 255
    return Image.fromarray(pixels)


def test_resize_follows_the_image_size_unless_it_is_given(tmp_path):
    root = save_classes(tmp_path, half_white)
    corner = plain_folders(root).test().images[0, 0, 0, 0]
    assert corner == pytest.approx(128 / 255, abs=0.01)  # the whole picture but for a narrow margin
    patch = plain_folders(root, resize=64).test().images[0]
    assert patch.unique().tolist() == [0, 1]  # the middle only
    large = data.imagefolder(root=root, search_val=2, calibration=2, test="train")
    given = data.imagefolder(root=root, search_val=2, calibration=2, test="train", resize=256)
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


def test_huge_decoded_sets_lie_on_disk(image_root, monkeypatch):
    reference = folders(image_root).test().images
    monkeypatch.setattr(decoding, "IN_MEMORY_BYTES", 100)
    assert torch.equal(folders(image_root).test().images, reference)
    full = decoding.shutil.disk_usage("/")._replace(free=0)
    monkeypatch.setattr(decoding.shutil, "disk_usage", lambda _: full)
    assert_error("point TMPDIR", folders, image_root)


def test_synthetic_is_learnable_by_the_nearest_class_mean():
    made = data.synthetic(num_classes=7, image_size=9, train=70, search_val=50, test=30, calibration=70)
    assert (len(made.search_val), len(made.test()), made.input_shape) == (50, 30, (3, 9, 9))
    known = made.calibration
    means = torch.stack([known.images[known.labels == label].mean(0) for label in range(7)])
    nearest = torch.cdist(made.test().images.flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == made.test().labels).float().mean() > 0.9
    assert data.synthetic(seed=1).fingerprint != data.synthetic(seed=0).fingerprint
    assert_error("calibration=600.*only 512", data.synthetic, calibration=600)
    assert_error("num_classes=0", data.synthetic, num_classes=0)


def test_build_names_and_options():
    assert data.build("fake", image_size=8).input_shape == (3, 8, 8)
    assert_error("unknown data set 'cifar'.*did you mean 'cifar10'", data.build, "cifar")
    assert_error("image_sise is not an option.*did you mean 'image_size'", data.build, "digits", image_sise=8)
    assert_error("data.root is missing", data.build, "cifar10")
    assert_error("search_val=1437", data.build, "digits", search_val=1437)
    assert_error("calibration=1138.*only 1137", data.build, "digits", calibration=1138)


def test_check_labels():
    labels = torch.tensor([0, 4])
    data.check_labels(labels, 5)
    assert_error("0 to 4.*4 outputs", data.check_labels, labels, 4)
    assert_error("-1 to 0", data.check_labels, torch.tensor([-1, 0]), 4)


def test_stratified_pick_is_proportional_and_handles_fewer_than_the_classes():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    picked = splits.stratified_pick(labels, 20, seed=3)
    assert torch.bincount(labels[picked]).tolist() == [12, 6, 2]
    assert len(picked.unique()) == 20
    assert not picked.equal(splits.stratified_pick(labels, 20, seed=4))
    few = splits.stratified_pick(torch.arange(10), 4, seed=0)
    assert len(few.unique()) == 4


def test_every_part_of_a_stratified_pick_is_stratified():
    labels = torch.arange(5).repeat_interleave(40)  # sorted by class, as folders are
    picked = labels[splits.stratified_pick(labels, 100, seed=1)]
    for part in (picked[:10], picked[:25], picked[-20:]):
        counts = torch.bincount(part, minlength=5)
        assert counts.max() - counts.min() <= 1


def test_short_last_batch_is_dropped_unless_it_is_the_only_one():
    assert [len(index) for index in splits.batch_indices(10, 4, 0, 0)] == [4, 4]
    assert [len(index) for index in splits.batch_indices(3, 4, 0, 0)] == [3]
    assert sorted(torch.cat(splits.batch_indices(12, 4, 0, 0)).tolist()) == list(range(12))


def test_shift_is_a_crop_of_the_padded_image_and_flip_a_mirror():
    images = torch.randint(1, 256, (20, 3, 6, 6), dtype=torch.uint8, generator=splits.generator(0))
    shifted = augment.random_shift(images, 2, splits.generator(1))
    padded = torch.nn.functional.pad(images, [2] * 4)
    places = set()
    for image, frame in zip(shifted, padded, strict=True):
        found = [
            (y, x) for y in range(5) for x in range(5) if torch.equal(image, frame[:, y : y + 6, x : x + 6])
        ]
        assert len(found) == 1
        places |= set(found)
    assert len(places) > 5
    flipped = augment.random_flip(images, splits.generator(2))
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, images, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(flipped, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 0 < sum(mirrored) < 20


def test_moving_images_keeps_values_and_changes_layout():
    part = data.synthetic(image_size=8).search_val
    moved = part.to("cpu", torch.channels_last)
    assert moved.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved.images, part.images)
    assert splits.fingerprint(moved) == splits.fingerprint(part)
    assert splits.fingerprint(replace(part, labels=part.labels.flip(0))) != splits.fingerprint(part)


@pytest.mark.parametrize("name", PICTURES)
def test_whatever_a_picture_raises_is_one_line_with_its_name(name, tmp_path):
    path = tmp_path / "odd.png"
    path.write_bytes(PICTURES[name])
    assert picture_size(str(path)) is None or is_sound(str(path)) in (True, False)
    if not is_sound(str(path)):
        assert_error(r"odd\.png (cannot be decoded|has [\d,]+ pixels).*skip_damaged=true", decode, str(path))


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
