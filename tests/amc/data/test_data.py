import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from amc import data
from amc.data import augment, picking, splits
from tests.amc.data.helpers import assert_error, first_batches, rows, same


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
    assert_error("divided by 255", data.cifar10, root=cifar_root, mean=[123.7, 116.3, 103.5])
    assert_error("divided by 255", data.cifar10, root=cifar_root, mean=[0.5] * 3, std=[58.4, 57.1, 57.4])
    assert_error("0..1 scale", data.cifar10, root=cifar_root, mean=[-0.5, 0.5, 0.5])
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
    picked = picking.stratified_pick(labels, 20, seed=3)
    assert torch.bincount(labels[picked]).tolist() == [12, 6, 2]
    assert len(picked.unique()) == 20
    assert not picked.equal(picking.stratified_pick(labels, 20, seed=4))
    few = picking.stratified_pick(torch.arange(10), 4, seed=0)
    assert len(few.unique()) == 4


def test_every_part_of_a_stratified_pick_is_stratified():
    labels = torch.arange(5).repeat_interleave(40)  # sorted by class, as folders are
    picked = labels[picking.stratified_pick(labels, 100, seed=1)]
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
