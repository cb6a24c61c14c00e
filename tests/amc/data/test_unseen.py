"""Images that nothing else uses, and other views of the search images."""

import pytest
import torch

from amc import data
from tests.amc.data.helpers import assert_error, rows


def builders(cifar_root, image_root):
    """Return for each data set its options and the number of its search images."""
    small = {"batch_size": 4, "calibration": 6}
    return {
        "digits": ({"calibration": 100}, 200, 100),
        "cifar10": ({"root": cifar_root, **small}, 20, 30),
        "imagefolder": ({"root": image_root, "image_size": 12, "resize": 16, **small}, 6, 3),
    }


@pytest.mark.parametrize("name", ["digits", "cifar10", "imagefolder"])
def test_unseen_images_are_the_next_of_the_same_hold_out(name, cifar_root, image_root):
    options, search, unseen = builders(cifar_root, image_root)[name]
    made = data.build(name, search_val=search, unseen=unseen, **options)
    whole = data.build(name, search_val=search + unseen, **options)
    assert (len(made.search_val), len(made.unseen)) == (search, unseen)
    assert torch.equal(torch.cat([made.search_val.images, made.unseen.images]), whole.search_val.images)
    assert torch.equal(torch.cat([made.search_val.labels, made.unseen.labels]), whole.search_val.labels)
    assert torch.equal(made.calibration.images, whole.calibration.images)
    assert whole.unseen is None
    first, other = (next(iter(each.train_batches(0, 0))) for each in (made, whole))
    assert torch.equal(first[0], other[0])


def test_unseen_images_are_used_by_nothing_else():
    made = data.digits(batch_size=1, search_val=200, unseen=100, calibration=1137)
    train = rows(torch.cat([images for images, _ in made.train_batches(0, 0)]))
    unseen = rows(made.unseen.images)
    assert len(unseen) == 100
    for part in (made.search_val, made.calibration, made.test()):
        assert not unseen & rows(part.images)
    assert not unseen & train


def test_unseen_images_of_a_folder_of_their_own(image_root):
    options = {"root": image_root, "image_size": 12, "resize": 16, "batch_size": 4, "calibration": 6}
    made = data.imagefolder(search_val_dir="mine", search_val=6, unseen=9, **options)
    whole = data.imagefolder(search_val_dir="mine", search_val=15, **options)
    assert torch.equal(torch.cat([made.search_val.images, made.unseen.images]), whole.search_val.images)
    assert_error(
        "search_val . unseen=16.*only 15",
        data.imagefolder, search_val_dir="mine", search_val=6, unseen=10, **options,
    )  # fmt: skip


def test_generated_images_are_new_ones_and_leave_the_fingerprint():
    made, without = data.synthetic(image_size=8, unseen=50), data.synthetic(image_size=8)
    assert len(made.unseen) == 50
    assert made.fingerprint == without.fingerprint  # calibration and search images are the same
    assert not rows(made.unseen.images) & (rows(made.search_val.images) | rows(made.test().images))


def test_impossible_numbers_are_refused():
    assert_error("^unseen=-1", data.digits, unseen=-1)
    assert_error("^unseen=-1", data.synthetic, unseen=-1)
    assert_error("^search_val=1000 and unseen=437.*1437", data.digits, search_val=1000, unseen=437)
    assert_error("^search_val=0", data.digits, search_val=0, unseen=10)
    for build in (data.digits, data.synthetic):
        assert_error("^search_val=1: expected 2 images or more to judge", build, search_val=1)
        assert_error("^unseen=1: expected 2 images or more, or 0", build, unseen=1)
    assert_error("^search_views=0", data.build, "digits", search_views=0)
    assert_error("^search_views=6", data.build, "digits", search_views=6)


def test_views_follow_the_images_and_are_shifted_by_an_eighth_and_mirrored(cifar_root):
    options = {"root": cifar_root, "search_val": 20, "calibration": 20}
    made, one = (data.build("cifar10", search_views=views, **options) for views in (3, 1))
    images = one.search_val.images
    assert torch.equal(made.search_val.images[:20], images)
    assert torch.equal(made.search_val.labels, one.search_val.labels.repeat(3))
    second, third = made.search_val.images[20:40], made.search_val.images[40:]
    assert torch.equal(second[..., 4:, 4:], images.flip(-1)[..., :-4, :-4])
    assert torch.equal(third[..., :-4, :-4], images[..., 4:, 4:])
    black = -torch.tensor(made.mean) / torch.tensor(made.std)
    for border in (second[..., :4, :], second[..., :4], third[..., -4:, :], third[..., -4:]):
        torch.testing.assert_close(border, black[:, None, None].expand_as(border))
    assert made.fingerprint != one.fingerprint
    assert torch.equal(made.calibration.images, one.calibration.images)


def test_views_are_not_counted_as_images_that_are_held_out():
    for views in (1, 3):
        made = data.build("digits", search_val=100, unseen=50, search_views=views)
        assert (len(made.search_val), made.held_out) == (100 * views, 150)


def test_digits_are_not_mirrored():
    made, one = (data.build("digits", search_views=views) for views in (2, 1))
    second = made.search_val.images[len(one.search_val) :]
    assert torch.equal(second[..., 2:, 2:], one.search_val.images[..., :-2, :-2])


@pytest.mark.parametrize("mirror", [True, False])
def test_views_of_fake_images_are_mirrored_where_training_mirrors(mirror):
    options = {"image_size": 16, "batch_size": 512, "mirror": mirror}
    made, one = (data.build("fake", search_views=views, **options) for views in (2, 1))
    second, images = made.search_val.images[len(one.search_val) :], one.search_val.images
    expected = images.flip(-1) if mirror else images
    assert torch.equal(second[..., 2:, 2:], expected[..., :-2, :-2])
    (first, _), (again, _) = (next(one.train_batches(epoch, 0)) for epoch in (0, 1))
    known = {image.numpy().tobytes() for image in first}
    assert all(image.numpy().tobytes() in known for image in again) != mirror
