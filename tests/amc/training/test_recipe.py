"""The parts of a recipe: augmentations, the average of the weights, accumulation, the best epoch, the end."""

import functools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from amc import data
from amc.data.splits import LabelledImages
from amc.errors import AmcError
from amc.scoring.run import logits
from amc.scoring.scores import top1
from amc.training.augment import GROUP, Augmentation, cross_entropy
from amc.training.averaging import Average
from amc.training.batches import batches
from amc.training.loop import train
from amc.training.pace import LAST, Pace, spoken
from amc.training.settings import TrainSettings
from tests.amc.training.test_training import FAKE, SHORT, Killed, network, same_state, stop_after

EVERYTHING = TrainSettings(
    epochs=3,
    precision="fp32",
    ema=0.9,
    accumulate=3,
    randaugment=9,
    erasing=0.5,
    mixup=0.2,
    cutmix=1.0,
    views=2,
    best=True,
    label_smoothing=0.1,
    distill_weight=0.5,
)


def facts(trained):
    return trained.epochs, trained.best_epoch, trained.best_top1


def test_killed_and_resumed_with_every_part_equals_unbroken_bit_for_bit(tmp_path):
    run = functools.partial(train, splits=FAKE, settings=EVERYTHING, seed=3, teacher=network(seed=1))
    whole_file, broken_file = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    whole = run(network(dropout=0.3), checkpoint=whole_file)
    for epoch in (1, 2):
        torch.rand(epoch)
        with pytest.raises(Killed):
            run(network(dropout=0.3), checkpoint=broken_file, on_epoch=stop_after(epoch))
    resumed = run(network(dropout=0.3), checkpoint=broken_file)
    assert same_state(resumed.model, whole.model)
    assert facts(resumed) == facts(whole)
    assert whole_file.read_bytes() == broken_file.read_bytes()
    again = run(network(dropout=0.3), checkpoint=broken_file)
    assert same_state(again.model, whole.model)


def test_views_show_the_same_batches_again():
    settings = replace(EVERYTHING, views=2)
    first, second, third = (list(batches(FAKE, settings, epoch, 5)) for epoch in range(3))
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, third, strict=True))
    assert all(torch.equal(a.targets, b.targets) for a, b in zip(first, third, strict=True))
    assert not any(torch.equal(a.images, b.images) for a, b in zip(first, second, strict=True))
    assert [batch.view for batch in (*first, *second, *third)] == [0] * 4 + [1] * 4 + [0] * 4


def test_plain_settings_leave_the_images_of_the_data_set():
    images, labels = next(FAKE.train_batches(1, 5))
    batch = next(batches(FAKE, SHORT, 1, 5))
    assert torch.equal(batch.images, images)
    assert batch.targets is batch.labels
    assert torch.equal(batch.labels, labels)


@pytest.mark.parametrize("change", [{"randaugment": 9}, {"erasing": 1.0}, {"mixup": 0.2}, {"cutmix": 1.0}])
def test_an_augmentation_follows_from_its_seed_alone(change):
    augmentation = Augmentation(replace(SHORT, **change), FAKE.mean, FAKE.std, FAKE.num_classes)
    images, labels = next(FAKE.train_batches(0, 0))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    found, targets = augmentation(images.clone(), labels, 7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    again, same = augmentation(images.clone(), labels, 7)
    other, _ = augmentation(images.clone(), labels, 8)
    assert torch.equal(found, again)
    assert torch.equal(targets, same)
    assert not torch.equal(found, other)
    assert not torch.equal(found, images)
    assert found.shape == images.shape
    assert found.dtype == images.dtype
    if targets.ndim == 2:
        assert targets.shape == (len(images), FAKE.num_classes)
        torch.testing.assert_close(targets.sum(1), torch.ones(len(images)))


def test_randaugment_works_on_the_pixels_in_groups():
    """Magnitude 1 of an operation that changes nothing gives the pixels back exactly."""
    augmentation = Augmentation(replace(SHORT, randaugment=1), FAKE.mean, FAKE.std, 4)
    images = next(FAKE.train_batches(0, 0))[0][: 2 * GROUP]
    for seed in range(40):
        found, _ = augmentation(images, torch.zeros(2 * GROUP, dtype=torch.long), seed)
        same = [torch.allclose(a, b, atol=1e-6) for a, b in zip(found, images, strict=True)]
        halves = same[:GROUP], same[GROUP:]
        if any(map(all, halves)) and not all(same):
            return
    raise AssertionError("no group kept its images while another changed")


@pytest.mark.parametrize("channels", [2, 4])
def test_randaugment_is_refused_for_images_that_are_neither_grey_nor_rgb(channels):
    splits = replace(FAKE, input_shape=(channels, 8, 8))
    with pytest.raises(AmcError, match=f"randaugment=9 changes colours, and the images have {channels} chan"):
        train(network(), splits, replace(SHORT, randaugment=9), seed=0)


def test_targets_of_fewer_classes_than_outputs():
    output = torch.randn(3, 5)
    labels = torch.tensor([0, 2, 1])
    shares = nn.functional.one_hot(labels, 3).float()
    for smoothing in (0.0, 0.1):
        expected = cross_entropy(output, labels, smoothing)
        torch.testing.assert_close(cross_entropy(output, shares, smoothing), expected)


def test_average_in_closed_form():
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    average = Average(layer, 0.5)
    for value, decay in ((2.0, 2 / 11), (3.0, 3 / 12), (4.0, 4 / 13)):
        before = average.tensors["weight"].item()
        with torch.no_grad():
            layer.weight.fill_(value)
        average.update()
        assert average.tensors["weight"].item() == pytest.approx(decay * before + (1 - decay) * value)
    with average.shown():
        assert layer.weight.item() == average.tensors["weight"].item()
    assert layer.weight.item() == 4.0
    for _ in range(50):
        average.update()
    late = average.tensors["weight"].item()
    with torch.no_grad():
        layer.weight.fill_(late + 1.0)
    average.update()
    assert average.tensors["weight"].item() == pytest.approx(late + 0.5)


def test_a_mask_of_infinities_has_no_average():
    layer = nn.Linear(2, 2)
    layer.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    average = Average(layer, 0.5)
    average.update()
    assert torch.equal(average.tensors["mask"], layer.mask)


def test_the_average_is_what_is_returned_and_validated():
    records = []
    plain = train(network(), FAKE, SHORT, seed=0).model
    averaged = train(network(), FAKE, replace(SHORT, ema=0.9), seed=0, on_epoch=records.append)
    assert not same_state(averaged.model, plain)
    assert averaged.best_top1 == max(record.val_top1 for record in records)


def test_accumulated_batches_are_one_large_batch():
    """Without batch norm two batches of 8, accumulated, give the step of one batch of 16."""

    def splits(batch):
        return data.synthetic(
            num_classes=4, image_size=4, train=16, batch_size=batch, search_val=4, calibration=4
        )

    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 4))

    settings = TrainSettings(epochs=1, lr=0.1, warmup_epochs=0, precision="fp32")
    large = splits(16)
    images, labels = next(large.train_batches(0, 0))
    halves = replace(
        splits(8), train_batches=lambda epoch, seed: zip(images.split(8), labels.split(8), strict=True)
    )
    together = train(model(), large, settings, seed=0).model
    # the second of two batches has half the peak rate of the cosine
    parts = train(model(), halves, replace(settings, lr=0.2, accumulate=2), seed=0).model
    for name, tensor in together.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor)


def test_the_best_epoch_is_kept_and_until_stops(tmp_path):
    settings = TrainSettings(epochs=6, lr=0.4, precision="fp32", best=True)
    records = []
    found = train(network(), FAKE, settings, seed=1, on_epoch=records.append)
    best = max(records, key=lambda record: record.val_top1)
    assert (found.best_epoch, found.best_top1) == (best.epoch, best.val_top1)
    assert found.epochs == 6
    stopped = replace(settings, until=round(best.val_top1 / 100, 4))
    file = tmp_path / "run.safetensors"
    ended = train(network(), FAKE, stopped, seed=1, checkpoint=file)
    assert ended.epochs == best.epoch
    assert same_state(ended.model, found.model)
    seen = []
    again = train(network(), FAKE, stopped, seed=1, checkpoint=file, on_epoch=seen.append)
    assert seen == []
    assert again.epochs == ended.epochs
    assert same_state(again.model, ended.model)


def test_other_validation_images_are_another_training(tmp_path):
    file, records = tmp_path / "run.safetensors", []
    train(network(), FAKE, SHORT, seed=0, checkpoint=file)
    judged = {"validation": FAKE.calibration, "checkpoint": file, "on_epoch": records.append}
    found = train(network(), FAKE, SHORT, seed=0, **judged)
    shown = FAKE.calibration
    assert len(records) == 3
    assert records[-1].val_top1 == top1(logits(found.model, shown.images, 8), shown.labels)


def test_the_pace_of_steps_and_epochs(monkeypatch):
    clock, told = [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    pace = Pace(100, 5, told.append)
    for seconds in (9.0, 4.0, 2.0, 2.0, 2.0, 7.0):
        clock[0] += seconds
        pace.step()
    assert told == [pytest.approx(2.0 * 100 * 5)]
    assert LAST == 5
    assert pace.epoch(10.0) == pytest.approx(40.0)
    assert pace.epoch(20.0) == pytest.approx(45.0)
    assert [spoken(each) for each in (40, 720, 3900)] == ["40 s", "12 min", "1 h 5 min"]


def test_the_pace_of_a_training_that_asks_its_teacher_in_two_epochs_of_five(monkeypatch):
    clock, taught, told = [0.0], [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    pace = Pace(10, 5, told.append, asking=2, asked=lambda: taught[0])
    for _ in range(LAST):
        clock[0] += 3.0
        taught[0] += 1.0
        pace.step()
    assert told == [pytest.approx(10 * (5 * 2.0 + 2 * 1.0))]
    taught[0] = 10.0
    assert pace.epoch(30.0) == pytest.approx(4 * 20.0 + 10.0)
    taught[0] = 20.0
    assert pace.epoch(30.0) == pytest.approx(3 * 20.0)
    assert pace.epoch(20.0) == pytest.approx(2 * 20.0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"accumulate": 0}, "accumulate=0: expected 1 or more"),
        ({"ema": 1.0}, "ema=1.0"),
        ({"randaugment": 31}, "randaugment=31: expected 0 to 30"),
        ({"erasing": 1.5}, "erasing=1.5"),
        ({"mixup": -1.0}, "mixup=-1.0"),
        ({"cutmix": math.inf}, "cutmix=inf"),
        ({"views": -1}, "views=-1"),
        ({"until": 92.0}, r"until=92.0: expected a share in \(0, 1\]"),
    ],
)
def test_bad_settings(bad, message):
    with pytest.raises(AmcError, match=message):
        TrainSettings(**{"epochs": 1} | bad)


@pytest.mark.slow
def test_a_compiled_training_learns_the_same():
    plain, fast = (train(network(), FAKE, replace(SHORT, compile=on), seed=0).model for on in (False, True))
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(fast.state_dict()[name], tensor, atol=1e-3, rtol=1e-3)


def test_an_accuracy_that_is_met_exactly_ends_the_training():
    judged = LabelledImages(FAKE.search_val.images[:1].repeat(1000, 1, 1, 1), torch.zeros(1000).long())

    class Answers(nn.Module):
        """Right on 817 of 1,000 images, whatever it learns."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, given):
            first = torch.arange(len(given)) < 49 if len(given) == 232 else torch.ones(len(given)).bool()
            return nn.functional.one_hot((~first).long(), 4) * self.weight

    assert 100 * 0.817 / 100 < 0.817  # the rounding at stake
    settings = TrainSettings(epochs=3, lr=1e-6, precision="fp32", until=0.817)
    found = train(Answers(), FAKE, settings, seed=0, validation=judged)
    assert (found.epochs, found.best_top1) == (1, pytest.approx(81.7))
