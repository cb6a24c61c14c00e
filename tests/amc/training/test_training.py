import copy
import dataclasses
import functools
import json
import logging
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from amc import data
from amc.data.splits import RawImages, from_memory
from amc.digest import network_digest
from amc.errors import AmcError
from amc.scoring.run import logits
from amc.scoring.scores import top1
from amc.training import loop
from amc.training.learner import parameter_groups
from amc.training.resume import data_key, first_batch, training_key
from amc.training.settings import TrainSettings, learning_rate
from amc.training.teaching.protocol import distillation_loss

FAKE = data.synthetic(
    num_classes=4, image_size=8, train=64, search_val=32, calibration=8, test=8, batch_size=16
)
SHORT = TrainSettings(epochs=3, warmup_epochs=0.5, precision="fp32")


class Killed(Exception):  # noqa: N818
    """Stands for a kill."""


def train(*given, **options):
    return loop.train(*given, **options).model


def network(num_classes=4, width=8, seed=0, dropout=0.0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(8 * width, num_classes),
        )


def same_state(left, right):
    return all(torch.equal(left.state_dict()[name], tensor) for name, tensor in right.state_dict().items())


def stop_after(epoch):
    def on_epoch(record):
        if record.epoch == epoch:
            raise Killed

    return on_epoch


def test_learns_the_digits():
    splits = data.digits(image_size=8, batch_size=64)
    records = []
    settings = TrainSettings(epochs=4, lr=0.1)
    trained = train(network(10), splits, settings, seed=0, on_epoch=records.append)
    test = splits.test()
    assert top1(logits(trained, test.images, 128), test.labels) > 85
    assert [(record.epoch, record.epochs) for record in records] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert records[-1].loss < records[0].loss
    assert records[-1].lr == pytest.approx(
        learning_rate(4 * splits.steps_per_epoch - 1, settings, splits.steps_per_epoch)
    )
    validation = splits.search_val
    assert records[-1].val_top1 == top1(logits(trained, validation.images, 256), validation.labels)
    assert all(record.seconds > 0 for record in records)
    assert not trained.training
    assert all(tensor.is_contiguous() for tensor in trained.state_dict().values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_killed_and_resumed_equals_unbroken_bit_for_bit(precision, tmp_path):
    settings = TrainSettings(
        epochs=3,
        precision=precision,
        distill_weight=0.5,
        label_smoothing=0.1,
        grad_clip=1.0,
        warmup_epochs=1.5,
    )
    run = functools.partial(train, splits=FAKE, settings=settings, seed=3, teacher=network(seed=1))
    whole = run(network(dropout=0.3))
    checkpoint = tmp_path / "deep" / "run.safetensors"
    for epoch in (1, 2):
        torch.rand(epoch)
        with pytest.raises(Killed):
            run(network(dropout=0.3), checkpoint=checkpoint, on_epoch=stop_after(epoch))
    seen = []
    resumed = run(
        network(dropout=0.3), checkpoint=checkpoint, on_epoch=lambda record: seen.append(record.epoch)
    )
    assert seen == [3]
    assert same_state(resumed, whole)
    again = run(
        network(dropout=0.3), checkpoint=checkpoint, on_epoch=lambda record: seen.append(record.epoch)
    )
    assert seen == [3]
    assert same_state(again, whole)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["run.safetensors"]
    with safe_open(checkpoint, "pt") as file:
        about = json.loads(file.metadata()["training"])
        assert (about["epoch"], about["seed"]) == (3, 3)
        assert "momentum/0.weight" in file.keys()  # noqa: SIM118
        assert "model/1.running_mean" in file.keys()  # noqa: SIM118


def test_killed_within_an_epoch_starts_that_epoch_again(tmp_path):
    whole = train(network(), FAKE, SHORT, seed=0)
    checkpoint = tmp_path / "run.safetensors"
    killed, steps = network(), []

    def count(module, args):
        steps.append(module)
        if len(steps) == FAKE.steps_per_epoch + 3:
            raise Killed

    killed.register_forward_pre_hook(count)
    with pytest.raises(Killed):
        train(killed, FAKE, SHORT, seed=0, checkpoint=checkpoint)
    assert checkpoint.is_file()
    assert same_state(train(network(), FAKE, SHORT, seed=0, checkpoint=checkpoint), whole)


@pytest.mark.parametrize("change", ["settings", "seed", "network", "data", "batches"])
def test_checkpoint_of_another_run_is_ignored(change, tmp_path, caplog):
    checkpoint = tmp_path / "run.safetensors"
    train(network(), FAKE, SHORT, seed=0, checkpoint=checkpoint)
    other = data.synthetic(num_classes=4, image_size=8, train=64, batch_size=16, seed=9)
    settings = TrainSettings(epochs=3, lr=0.01, precision="fp32") if change == "settings" else SHORT
    flipped = lambda *given: ((images.flip(-1), labels) for images, labels in FAKE.train_batches(*given))  # noqa: E731
    mirrored = replace(FAKE, train_batches=flipped)  # as many batches of the same images, otherwise augmented
    arguments = ({"data": other, "batches": mirrored}.get(change, FAKE), settings)
    seed = 1 if change == "seed" else 0
    start = network(seed=5) if change == "network" else network()
    fresh = train(copy.deepcopy(start), *arguments, seed=seed)
    epochs = []
    with caplog.at_level(logging.WARNING):
        found = train(
            start,
            *arguments,
            seed=seed,
            checkpoint=checkpoint,
            on_epoch=lambda record: epochs.append(record.epoch),
        )
    assert epochs == [1, 2, 3]
    assert same_state(found, fresh)
    assert "other settings" in caplog.text


def with_a_change(change):
    """Return the network of ``network()`` with the same tensors, and one thing about it changed."""
    model = network()
    if change == "dropout":
        model[9].p = 0.5
    elif change == "activation":
        model[2] = nn.Tanh()
    elif change == "padding":
        model[0].padding_mode = "circular"
    elif change == "frozen":
        model[0].requires_grad_(False)
    else:
        model.register_buffer("mean", torch.ones(1), persistent=False)
    return model


CHANGES = ("dropout", "activation", "padding", "frozen", "buffer")


def test_what_no_tensor_of_the_state_dict_shows_makes_another_network():
    digests = [network_digest(network()), *map(network_digest, map(with_a_change, CHANGES))]
    assert len({*digests, network_digest(network(), "origin")}) == len(CHANGES) + 2
    assert network_digest(network()) == digests[0]


@pytest.mark.parametrize("method", ["full", "norms"])
def test_a_checkpoint_of_other_layers_with_the_same_tensors_is_ignored(method, tmp_path):
    checkpoint, epochs = tmp_path / "run.safetensors", []
    settings = TrainSettings(epochs=1, precision="fp32", method=method)
    for model in (network(), network(), with_a_change("activation")):
        train(model, FAKE, settings, seed=0, checkpoint=checkpoint, on_epoch=epochs.append)
    assert len(epochs) == 2  # the second network is the first


class Noisy(nn.Module):
    """Draws with Python and NumPy, and counts its steps in a buffer that is not saved."""

    def __init__(self):
        super().__init__()
        self.layers = network()
        self.register_buffer("steps", torch.zeros(()), persistent=False)
        self.register_buffer("grown", torch.zeros(1), persistent=False)

    def forward(self, images):
        if not self.training:
            return self.layers(images)
        self.steps += 1
        self.grown = torch.cat([self.grown, self.steps[None]])
        return self.layers(images) * (1 + random.random() + np.random.rand() + 0.1 * self.grown.sum())


def test_draws_of_python_and_numpy_and_unsaved_buffers_are_those_of_an_unbroken_training(tmp_path):
    before = random.getstate(), np.random.get_state()[1].tolist()
    whole = train(Noisy(), FAKE, SHORT, seed=3)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    checkpoint = tmp_path / "run.safetensors"
    random.random(), np.random.rand()
    with pytest.raises(Killed):
        train(Noisy(), FAKE, SHORT, seed=3, checkpoint=checkpoint, on_epoch=stop_after(2))
    resumed = train(Noisy(), FAKE, SHORT, seed=3, checkpoint=checkpoint)
    assert same_state(resumed, whole)
    assert torch.equal(resumed.grown, whole.grown)
    assert resumed.steps == 3 * FAKE.steps_per_epoch


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (3, "epoch 1 has 4 batches or more, Splits.steps_per_epoch is 3"),
        (5, "epoch 1 has 4 batches, Splits.steps_per_epoch is 5"),
    ],
)
def test_a_wrong_number_of_batches_is_refused_before_anything_is_saved(told, message, tmp_path):
    with pytest.raises(AmcError, match=message):
        train(
            network(),
            replace(FAKE, steps_per_epoch=told),
            SHORT,
            seed=0,
            checkpoint=tmp_path / "run.safetensors",
        )
    assert not list(tmp_path.iterdir())


def test_a_data_set_without_batches_is_refused(tmp_path):
    empty = replace(FAKE, train_batches=lambda epoch, seed: iter(()))
    with pytest.raises(AmcError, match="has no training batch"):
        train(network(), empty, SHORT, seed=0, checkpoint=tmp_path / "run.safetensors")


def in_memory(changed=None):
    """Return 32 random images in batches of 8, of which one may be black."""
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (32, 3, 8, 8), generator=draws, dtype=torch.uint8)
    if changed is not None:
        images[changed] = 0
    raw = RawImages(images, torch.arange(32) % 4)
    return from_memory(
        "memory",
        num_classes=4,
        train=raw,
        search_val=raw[torch.arange(4)],
        load_test=lambda: raw,
        augment=lambda shown, draws: shown,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        image_size=8,
        batch_size=8,
        calibration=4,
        seed=0,
    )


def test_an_image_behind_the_first_batch_makes_another_training():
    first = in_memory()
    later = [row for batch in first.order.batches(0, 0)[1:] for row in batch.tolist()]
    other = next(made for row in later if (made := in_memory(row)).fingerprint == first.fingerprint)
    assert first_batch(other, 0) == first_batch(first, 0)
    keys = [
        training_key(
            SHORT, splits, FAKE.search_val, "network", None, seed=0, device=torch.device("cpu"), bf16=False
        )
        for splits in (first, in_memory(), other)
    ]
    assert keys[0] == keys[1] != keys[2]
    assert data_key(replace(first, train_digest=None), 0) == data_key(first, 0)[:-1]


def test_damaged_checkpoint_is_ignored(tmp_path, caplog):
    checkpoint = tmp_path / "run.safetensors"
    checkpoint.write_bytes(b"rubbish")
    assert same_state(
        train(network(), FAKE, SHORT, seed=0, checkpoint=checkpoint), train(network(), FAKE, SHORT, seed=0)
    )
    assert "is damaged" in caplog.text
    assert (tmp_path / "run.safetensors.damaged").read_bytes() == b"rubbish"


def test_the_random_state_of_the_caller_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    train(network(dropout=0.5), FAKE, TrainSettings(epochs=1), seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_epochs_leave_the_weights_and_frozen_parameters_stay():
    start = network()
    assert same_state(train(copy.deepcopy(start), FAKE, TrainSettings(epochs=0), seed=0), start)
    frozen = copy.deepcopy(start)
    frozen[0].weight.requires_grad_(False)
    train(frozen, FAKE, TrainSettings(epochs=1), seed=0)
    assert torch.equal(frozen[0].weight, start[0].weight)
    assert not torch.equal(frozen[4].weight, start[4].weight)
    with pytest.raises(AmcError, match="no parameter to train"):
        train(start.requires_grad_(False), FAKE, TrainSettings(epochs=1), seed=0)


def test_warmup_and_cosine_in_closed_form():
    settings = TrainSettings(epochs=10, lr=0.4, warmup_epochs=1.5)
    rates = [learning_rate(step, settings, 20) for step in range(201)]
    assert rates[:30] == pytest.approx([0.4 * (step + 1) / 30 for step in range(30)])
    assert rates[30:] == pytest.approx([0.2 * (1 + math.cos(math.pi * step / 170)) for step in range(171)])
    assert max(rates) == rates[30] == 0.4
    assert rates[115] == pytest.approx(0.2)
    assert rates[200] == pytest.approx(0)
    assert learning_rate(0, TrainSettings(epochs=1, lr=0.4, warmup_epochs=0), 20) == 0.4
    capped = TrainSettings(epochs=1, lr=0.4, warmup_epochs=5)
    assert learning_rate(9, capped, 20) == learning_rate(10, capped, 20) == 0.4


def test_distillation_loss_against_a_hand_computed_value():
    teacher, student = torch.tensor([[math.log(16), 0.0], [0.0, 0.0]]), torch.zeros(2, 2)
    softened = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)  # at T = 2: 4 to 1 against 1 to 1
    assert distillation_loss(student, teacher, 2.0).item() == pytest.approx(4 * softened / 2, rel=1e-6)
    assert distillation_loss(teacher, teacher, 4.0).item() == pytest.approx(0, abs=1e-7)


def test_one_step_is_sgd_on_the_mixed_loss():
    splits = data.synthetic(num_classes=4, image_size=4, train=8, batch_size=8, search_val=4, calibration=4)
    settings = TrainSettings(
        epochs=1,
        lr=0.1,
        momentum=0.0,
        nesterov=False,
        weight_decay=0.01,
        precision="fp32",
        distill_weight=0.25,
        distill_temperature=2.0,
        label_smoothing=0.1,
    )
    torch.manual_seed(0)
    student, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(48, 4)) for _ in range(2))
    weight, bias = student[1].weight.detach().clone(), student[1].bias.detach().clone()
    reference = copy.deepcopy(student)
    images, labels = next(splits.train_batches(0, 5))
    loss = 0.75 * nn.functional.cross_entropy(reference(images), labels, label_smoothing=0.1)
    loss = loss + 0.25 * distillation_loss(reference(images), teacher(images).detach(), 2.0)
    loss.backward()
    records = []
    teacher.train()
    trained = train(student, splits, settings, seed=5, teacher=teacher, on_epoch=records.append)
    assert teacher.training
    assert records[0].loss == pytest.approx(loss.item(), rel=1e-5)
    expected = weight - 0.1 * (reference[1].weight.grad + 0.01 * weight)
    torch.testing.assert_close(trained[1].weight.detach(), expected)
    torch.testing.assert_close(trained[1].bias.detach(), bias - 0.1 * reference[1].bias.grad)


def test_no_weight_decay_on_norms_and_biases():
    model = network()
    decayed, kept = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert {id(p) for p in decayed["params"]} == {id(model[index].weight) for index in (0, 4, 10)}
    assert len(kept["params"]) == 5


def test_diverging_loss_names_the_step_and_a_lower_rate():
    with pytest.raises(AmcError, match=r"loss is (nan|inf) at step \d+ of 12.*try 1e\+19") as caught:
        train(network(), FAKE, TrainSettings(epochs=3, lr=1e20, warmup_epochs=0, precision="fp32"), seed=0)
    assert "\n" not in str(caught.value)


def test_step_of_the_first_bad_loss_is_exact():
    model, steps = network(), []

    def poison(module, args, output):
        steps.append(module)
        return output * math.nan if len(steps) == 3 else output

    model.register_forward_hook(poison)
    with pytest.raises(AmcError, match="loss is nan at step 3 of 4"):
        train(model, FAKE, TrainSettings(epochs=1, precision="fp32"), seed=0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"epochs": -1}, "epochs=-1"),
        ({"lr": 0}, "lr=0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"momentum": 0.0}, "nesterov=True"),
        ({"precision": "fp16"}, "precision=fp16: expected auto, fp32 or bf16"),
        ({"distill_weight": 1.5}, "distill_weight=1.5"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"grad_clip": 0.0}, "grad_clip=0.0"),
        ({"sharded": True, "compile": True}, "sharded=True: expected false with compile"),
    ],
)
def test_bad_settings(bad, message):
    with pytest.raises(AmcError, match=message):
        TrainSettings(**{"epochs": 1} | bad)


def test_bad_networks():
    settings = TrainSettings(epochs=1, distill_weight=0.5)
    with pytest.raises(AmcError, match="without a teacher"):
        train(network(), FAKE, settings, seed=0)
    with pytest.raises(AmcError, match="teacher has 7 outputs, the network 4"):
        train(network(), FAKE, settings, seed=0, teacher=network(7))
    with pytest.raises(AmcError, match="network has 2 outputs"):
        train(network(2), FAKE, SHORT, seed=0)
    model = network()
    model.register_forward_hook(lambda module, args, output: (output, output))
    with pytest.raises(AmcError, match="returned a tuple of 2"):
        train(model, FAKE, SHORT, seed=0)


def test_the_teacher_is_left_as_it_was():
    """Its memory format too: another layout rounds differently."""
    teacher = network(seed=1)
    strides = [parameter.stride() for parameter in teacher.parameters()]
    train(network(), FAKE, TrainSettings(epochs=1, distill_weight=0.5), seed=0, teacher=teacher)
    assert [parameter.stride() for parameter in teacher.parameters()] == strides


class Room(nn.Module):
    """Stands for a network on a GPU with room for ``room`` images in training; counts those of each call."""

    def __init__(self, room, **options):
        super().__init__()
        self.layers, self.room, self.calls = network(**options), room, []

    def forward(self, images):
        output = self.layers(images)
        if self.training:
            self.calls.append(len(images))
            if len(images) > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return output


def test_a_step_without_memory_keeps_its_batch_in_parts():
    """Without norm layers the gradient is the same; a part has at least two images."""
    settings = dataclasses.replace(SHORT, epochs=1)
    whole, parted = (Room(room) for room in (16, 4))
    for each in (whole, parted):
        each.layers[1], each.layers[5] = nn.Identity(), nn.Identity()
        train(each, FAKE, settings, seed=0)
    assert parted.calls[:6] == [16, 8, 4, 4, 4, 4]
    assert len(parted.calls) == 2 + 4 * FAKE.steps_per_epoch
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parted.state_dict()[name], tensor)
    with pytest.raises(AmcError, match="memory ran out while Room ran on 2 images"):
        train(Room(1), FAKE, settings, seed=0)


def test_a_step_that_found_no_memory_leaves_no_trace(tmp_path):
    """A training that is taken up again meets the same lack of memory, and gives the same bytes."""
    unbroken, broken = (Room(4, dropout=0.5) for _ in range(2))
    train(unbroken, FAKE, SHORT, seed=0, checkpoint=tmp_path / "unbroken")
    with pytest.raises(Killed):
        train(broken, FAKE, SHORT, seed=0, checkpoint=tmp_path / "broken", on_epoch=stop_after(2))
    again = Room(4, dropout=0.5)
    train(again, FAKE, SHORT, seed=0, checkpoint=tmp_path / "broken")
    assert again.calls[:3] == [16, 8, 4]
    assert same_state(unbroken, again)
