import sys
import types
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from amc.data import LabelledImages, build, synthetic
from amc.errors import AmcError, SettingError
from amc.notes import note_once

PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
SIZES = {"image_size": 8, "search_val": 6, "calibration": 6, "batch_size": 4}


class Pairs:
    """A data set of torchvision's form."""

    classes = ("red", "blue")

    def __init__(self, count, kind):
        self.count, self.kind = count, kind

    def __len__(self):
        return self.count

    def __getitem__(self, place):
        label = place % 2
        image = Image.new("RGB", (10, 12), "red" if label == 0 else "blue")
        return (np.asarray(image) if self.kind == "array" else image), label


class Records(Pairs):
    """A data set of Hugging Face's form."""

    classes = None
    features = {"label": SimpleNamespace(names=["red", "blue"])}  # noqa: RUF012

    def __getitem__(self, place):
        image, label = super().__getitem__(place)
        return {"image": image, "label": label}


class ArrayRecords(Records):
    """The same, after ``with_format("numpy")``."""

    def __getitem__(self, place):
        found = super().__getitem__(place)
        return {"image": np.asarray(found["image"]), "label": np.int64(found["label"])}


class Given(Pairs):
    """Entries that are given."""

    def __init__(self, *entries):
        self.entries, self.count = entries, 24

    def __getitem__(self, place):
        return self.entries[place % len(self.entries)]


@pytest.fixture(autouse=True)
def mine(monkeypatch):
    module = types.ModuleType("mine_data")
    module.make = lambda form=Pairs, kind="picture": (form(24, kind), form(4, kind))
    module.wrong = lambda: 3
    module.fails = lambda: 1 / 0
    monkeypatch.setitem(sys.modules, "mine_data", module)


def test_batches_tell_which_images_of_the_training_set_they_hold():
    splits = build("own", factory="mine_data.make", seed=0, **SIZES)
    assert splits.order.total == 24
    assert sorted(splits.order.rows.tolist()) != list(range(18))
    assert len(splits.order.rows) == 18


def test_without_numbers_a_fifth_is_held_out_and_all_others_calibrate():
    splits = build("own", factory="mine_data.make", seed=0, image_size=8, batch_size=4)
    assert (len(splits.search_val), len(splits.calibration)) == (4, 20)


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"kind": "array"}, {"form": Records}, {"form": ArrayRecords}],
    ids=["pictures", "arrays", "records", "records of arrays"],
)
def test_two_data_sets_become_splits(kwargs):
    splits = build("own", factory="mine_data.make", kwargs=kwargs, seed=0, **SIZES)
    assert splits.class_names == ("red", "blue")
    assert splits.input_shape == (3, 8, 8)
    assert (len(splits.search_val), len(splits.test()), splits.steps_per_epoch) == (6, 4, 4)
    reds = splits.search_val.images[splits.search_val.labels == 0].mean((0, 2, 3))
    expected = (torch.tensor([1.0, 0.0, 0.0]) - torch.tensor(splits.mean)) / torch.tensor(splits.std)
    assert torch.allclose(reds, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("factory", "part"),
    [
        ("mine_data.wrong", "returned int; expected Splits, or two data sets"),
        ("mine_data.fails", "ZeroDivisionError"),
        ("mine_data.nothing", "mine_data has no 'nothing'"),
        ("no_such_module.make", "importing 'no_such_module' failed"),
        ("plain", "expected package.module.name"),
    ],
)
def test_other_factories_are_refused_in_one_line(factory, part):
    with pytest.raises(AmcError, match=part) as found:
        build("own", factory=factory, seed=0, **SIZES)
    assert "\n" not in str(found.value)


GREY = np.zeros((8, 8), np.uint8)


@pytest.mark.parametrize(
    ("entry", "part"),
    [
        ((GREY[None], 0), r"shape \(1, 8, 8\); expected \(H, W\)"),
        ((GREY[..., None], 0), r"shape \(8, 8, 1\); expected"),
        ((GREY[:0], 0), r"shape \(0, 8\); expected"),
        ((GREY[0], 0), r"shape \(8,\); expected"),
        ((GREY.astype(float), 0), "values of float64"),
        ((GREY, "cat"), "a label of the data set is 'cat'; expected a class number"),
        ((GREY, 0.5), "a label of the data set is 0.5"),
        ((GREY, -1), "a label of the data set is -1; expected a class number"),
        ((GREY, 20180810), "a label of the data set is 20180810"),
        ((GREY, [1, 0]), "a label of the data set is .1, 0."),
        ((GREY, None), "a label of the data set is None"),
        ((GREY, torch.eye(2)), "a label of the data set is tensor"),
        ((GREY,), "is a tuple; expected a pair"),
        (3, "is a int; expected a pair"),
        ({"image": GREY, "label": None}, "has image, label; expected"),
        ({"image": GREY, 3: 1}, "has image, 3; expected image and label"),
    ],
)
def test_entries_that_are_no_images_with_labels_are_refused_in_one_line(entry, part, monkeypatch):
    monkeypatch.setattr(sys.modules["mine_data"], "make", lambda: (Given(entry), Given(entry)))
    with pytest.raises(SettingError, match=part) as found:
        build("own", factory="mine_data.make", seed=0, **SIZES)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.full((8, 8), 25700, np.uint16), 100),
        (np.full((8, 8), 25700, np.int32), 100),
        (np.full((8, 8), 100, np.float32), 100),
    ],
)
def test_pictures_of_more_bits_keep_their_range(values, expected, monkeypatch):
    entry = (Image.fromarray(values), 0)
    monkeypatch.setattr(sys.modules["mine_data"], "make", lambda: (Given(entry), Given(entry)))
    images = build("own", factory="mine_data.make", seed=0, **SIZES, **PLAIN).calibration.images
    torch.testing.assert_close(images, torch.full_like(images, expected / 255))


@pytest.mark.parametrize("values", [np.full((8, 8), 0.5, np.float32), np.full((8, 8), -1, np.int32)])
def test_pictures_of_another_range_are_refused(values, monkeypatch):
    entry = (Image.fromarray(values), 0)
    monkeypatch.setattr(sys.modules["mine_data"], "make", lambda: (Given(entry), Given(entry)))
    with pytest.raises(AmcError, match="an image: grey values"):
        build("own", factory="mine_data.make", seed=0, **SIZES)


class Failing(Pairs):
    """A data set whose third entry fails."""

    def __init__(self, error):
        super().__init__(24, "picture")
        self.error = error

    def __getitem__(self, place):
        if place == 2:
            raise self.error
        return super().__getitem__(place)


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (Failing(KeyError("photo7")), "mine_data.make: entry 2 of its Failing fails: KeyError: 'photo7'"),
        (Failing(OSError("image file\nis truncated")), "entry 2 .* OSError: image file is truncated"),
        (iter([]), "mine_data.make returned a data set, list_iterator, that tells no length"),
    ],
)
def test_a_data_set_that_fails_is_told_in_one_line(data, part, monkeypatch):
    monkeypatch.setattr(sys.modules["mine_data"], "make", lambda: (data, data))
    with pytest.raises(AmcError, match=part) as found:
        build("own", factory="mine_data.make", seed=0, **SIZES)
    assert "\n" not in str(found.value)


def test_memory_that_runs_out_is_not_the_data_sets_fault(monkeypatch):
    data = Failing(MemoryError())
    monkeypatch.setattr(sys.modules["mine_data"], "make", lambda: (data, data))
    with pytest.raises(MemoryError):
        build("own", factory="mine_data.make", seed=0, **SIZES)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"image_size": 64}, r"data\.image_size=64: .* taken as they are and have 16"),
        ({"batch_size": 7}, r"data\.batch_size=7: .* have 32"),
        ({"mean": [0.1, 0.1, 0.1]}, r"data\.mean=\[0\.1,0\.1,0\.1\]: .* have \[0\.5,0\.5,0\.5\]"),
        ({"std": [0.1, 0.1, 0.1]}, r"data\.std="),
    ],
)
def test_settings_that_splits_do_not_have_are_refused(given, part, monkeypatch, caplog):
    monkeypatch.setattr(sys.modules["mine_data"], "make", synthetic)
    settings = {"factory": "mine_data.make", "kwargs": {"image_size": 16}, "seed": 0}
    with pytest.raises(SettingError, match=part) as found:
        build("own", **settings, **given)
    assert "\n" not in str(found.value)
    theirs = {"image_size": 16, "batch_size": 32, "mean": [0.5] * 3, "std": [0.25] * 3}
    assert build("own", **settings, **theirs).input_shape == (3, 16, 16)
    assert caplog.messages == []


def test_splits_that_come_class_by_class_are_put_in_a_mixed_order(monkeypatch):
    made = synthetic(image_size=8)
    order = made.search_val.labels.argsort()
    by_class = LabelledImages(made.search_val.images[order], made.search_val.labels[order])
    found = {}
    for name, splits in {"mixed": made, "sorted": replace(made, search_val=by_class)}.items():
        monkeypatch.setattr(sys.modules["mine_data"], "make", lambda own=splits: own)
        found[name] = build("own", factory="mine_data.make", seed=0)
    assert found["mixed"] is made
    assert set(by_class.labels[:16].tolist()) == {0, 1}
    assert set(found["sorted"].search_val.labels[:16].tolist()) == set(range(10))
    assert found["sorted"].calibration is made.calibration
    assert found["sorted"].fingerprint != made.fingerprint


def test_mirroring_of_splits_is_about_views_alone(monkeypatch, caplog):
    monkeypatch.setattr(sys.modules["mine_data"], "make", synthetic)
    build("own", factory="mine_data.make", seed=0, mirror=False)
    assert "data.mirror=false is about views" in caplog.text


@pytest.mark.parametrize(
    ("entry", "part"),
    [
        ((GREY, -1), "label of the data set is -1"),
        ((GREY, 2), "first label of the test data set is 2"),
        (3, "pair"),
    ],
)
def test_a_first_test_image_that_is_wrong_is_refused_at_once(entry, part, monkeypatch):
    monkeypatch.setattr(sys.modules["mine_data"], "make", lambda: (Pairs(24, "picture"), Given(entry)))
    with pytest.raises(SettingError, match=part):
        build("own", factory="mine_data.make", seed=0, **SIZES)


def test_classes_without_an_image_are_told(monkeypatch, caplog):
    note_once.cache_clear()
    entries = Given((GREY, 1), (GREY, 3))
    monkeypatch.setattr(sys.modules["mine_data"], "make", lambda: (entries, entries))
    assert build("own", factory="mine_data.make", seed=0, **SIZES).num_classes == 4
    (line,) = caplog.messages
    assert "data.factory=mine_data.make has no image of 2 of the classes 0 to 3 (for one, 0)" in line


def test_an_empty_data_set_is_refused(monkeypatch):
    monkeypatch.setattr(sys.modules["mine_data"], "make", lambda: ([], []))
    with pytest.raises(SettingError, match="is empty"):
        build("own", factory="mine_data.make", seed=0, **SIZES)


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (("blue", "red"), "number 0 is 'red' in training and 'blue' in test"),
        (("red",), "training has 2 and test has 1"),
    ],
)
def test_test_images_of_other_classes_are_refused(names, part, monkeypatch):
    test = Pairs(4, "picture")
    test.classes = names
    monkeypatch.setattr(sys.modules["mine_data"], "make", lambda: (Pairs(24, "picture"), test))
    with pytest.raises(SettingError, match=part) as found:
        build("own", factory="mine_data.make", seed=0, **SIZES)
    assert "\n" not in str(found.value)
    test.classes = ("red", "blue")
    assert len(build("own", factory="mine_data.make", seed=0, **SIZES).test()) == 4


def test_class_folders_are_split_the_same_for_every_seed(tmp_path):
    for place in range(20):
        folder = tmp_path / ("a" if place % 2 else "b")
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (9, 9), (place, 0, 0)).save(folder / f"{place}.png")
    sizes = SIZES | {"search_val": 4, "calibration": 4}
    one, two = (build("imagefolder", root=tmp_path, split=0.2, seed=seed, **sizes) for seed in (0, 1))
    assert len(one.test()) == 4
    assert one.class_names == ("a", "b")
    assert torch.equal(one.test().images, two.test().images)
    seen = torch.cat([one.search_val.images, one.calibration.images])
    assert not any(torch.equal(image, other) for image in one.test().images for other in seen)
    with pytest.raises(SettingError, match="split=1"):
        build("imagefolder", root=tmp_path, split=1.0, seed=0, **sizes)
