"""Teachers: cached logits, files, ONNX, functions, and hints."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from amc.errors import AmcError
from amc.graph.trace import trace
from amc.models import ModelSpec, build
from amc.runtimes.onnx_file import onnx_bytes
from amc.scoring.run import logits
from amc.training.batches import batches
from amc.training.loop import train
from amc.training.settings import TrainSettings
from amc.training.teaching.black_box import FunctionTeacher, teacher_from_file
from amc.training.teaching.hints import Hints, hint_places
from tests.amc.training.test_training import FAKE, Killed, network, same_state, stop_after

TAUGHT = TrainSettings(epochs=5, precision="fp32", distill_weight=0.5, views=2, mixup=0.2, randaugment=3)


def test_cached_logits_give_the_bytes_of_fresh_ones_and_are_asked_for_once(tmp_path):
    seen = []

    def fresh(images):
        seen.append(len(images))
        with torch.no_grad():
            return teacher(images)

    teacher = network(seed=1).eval()
    steps = FAKE.steps_per_epoch
    unmixed = replace(TAUGHT, mixup=0.0, randaugment=0)
    cached = train(
        network(), FAKE, unmixed, seed=0, teacher=FunctionTeacher(fresh, "fresh"), teacher_cache=tmp_path
    )
    assert len(seen) == 2 * steps
    assert len(list(tmp_path.iterdir())) == 2
    again = train(
        network(), FAKE, unmixed, seed=0, teacher=FunctionTeacher(fresh, "fresh"), teacher_cache=tmp_path
    )
    assert len(seen) == 2 * steps  # all from the files
    assert same_state(again.model, cached.model)
    views = replace(FAKE, train_batches=lambda epoch, seed: FAKE.train_batches(epoch % 2, seed))
    live = train(
        network(),
        views,
        replace(unmixed, views=0),
        seed=0,
        teacher=FunctionTeacher(fresh, "fresh"),
    )
    assert len(seen) == 2 * steps + 5 * steps
    assert same_state(live.model, cached.model)


def test_a_training_shorter_than_its_views_shares_a_folder_that_is_given(tmp_path):
    """Each of its views is seen once, so that only other trainings can use them."""
    seen = []

    def fresh(images):
        seen.append(len(images))
        return torch.zeros(len(images), 4)

    short = replace(TAUGHT, epochs=2, views=3)
    for folder, asked in ((None, 2), (tmp_path, 4), (tmp_path, 4), (None, 6)):
        train(network(), FAKE, short, seed=0, teacher=FunctionTeacher(fresh, "zeros"), teacher_cache=folder)
        assert len(seen) == asked * FAKE.steps_per_epoch
    longer = replace(TAUGHT, epochs=4, views=3)
    train(network(), FAKE, longer, seed=0, teacher=FunctionTeacher(fresh, "zeros"), teacher_cache=tmp_path)
    assert len(seen) == 7 * FAKE.steps_per_epoch


def test_logits_of_another_precision_are_not_read(tmp_path):
    for precision in ("bf16", "fp32"):
        settings = replace(TAUGHT, precision=precision)
        train(network(), FAKE, settings, seed=0, teacher=network(seed=1), teacher_cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_logits_of_other_layers_with_the_same_tensors_are_not_read(tmp_path):
    for options in ({}, {"dropout": 0.5}, {"origin": ("other",)}):
        teacher = network(seed=1, dropout=options.pop("dropout", 0.0))
        train(network(), FAKE, TAUGHT, seed=0, teacher=teacher, teacher_cache=tmp_path, **options)
    assert len(list(tmp_path.iterdir())) == 6


def poisoned(images):
    """Return logits of which the last is the logarithm of 0."""
    found = torch.zeros(len(images), 4)
    found[-1, 0] = -torch.inf
    return found


class Poisoned(nn.Module):
    """A network that returns them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.zeros(1))

    def forward(self, images):
        return poisoned(images)


@pytest.mark.parametrize(
    ("teacher", "views", "message"),
    [
        (FunctionTeacher(poisoned, "mine"), 2, "^teacher mine returned NaN or infinity for a batch of 16"),
        (Poisoned(), 2, "^the teacher returned NaN or infinity for a batch of 16 images: expected finite"),
        (Poisoned(), 0, "loss is nan at step 1 of 20.*the teacher has returned NaN or infinity; likely"),
    ],
)
def test_logits_that_are_not_finite_are_told_as_the_teachers_and_not_kept(teacher, views, message, tmp_path):
    settings = replace(TAUGHT, views=views)
    with pytest.raises(AmcError, match=message) as caught:
        train(network(), FAKE, settings, seed=0, teacher=teacher, teacher_cache=tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_logits_of_other_training_images_are_not_read(tmp_path):
    for splits in (FAKE, replace(FAKE, train_digest=lambda: "others")):
        train(network(), splits, TAUGHT, seed=0, teacher=network(seed=1), teacher_cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_killed_and_resumed_with_a_cache_equals_unbroken(tmp_path):
    options = {"splits": FAKE, "settings": TAUGHT, "seed": 3, "teacher": network(seed=1)}
    whole = train(network(), **options).model
    for epoch in (1, 3):
        with pytest.raises(Killed):
            train(
                network(),
                **options,
                teacher_cache=tmp_path / "teacher",
                checkpoint=tmp_path / "run.safetensors",
                on_epoch=stop_after(epoch),
            )
    for file in (tmp_path / "teacher").iterdir():
        file.write_bytes(file.read_bytes()[:-3])  # damaged files are made again
    resumed = train(
        network(), **options, teacher_cache=tmp_path / "teacher", checkpoint=tmp_path / "run.safetensors"
    )
    assert same_state(resumed.model, whole)


@pytest.mark.parametrize("form", ["npy", "safetensors"])
def test_a_file_of_logits_teaches_as_the_function_of_the_images_that_it_was_made_of(form, tmp_path):
    """Without augmentation the logits of an image are the same in every epoch."""
    torch.manual_seed(0)
    table = torch.randn(FAKE.order.total, 4)
    path = tmp_path / f"teacher.{form}"
    if form == "npy":
        np.save(path, table.numpy())
    else:
        save_file({"logits": table}, path)
    settings = TrainSettings(epochs=2, precision="fp32", distill_weight=0.7)
    teacher = teacher_from_file(path, FAKE, seed=5, mixes=False)
    for epoch in range(2):
        order = FAKE.order.batches(epoch, 5)
        for batch, rows in zip(batches(FAKE, settings, epoch, 5), order, strict=True):
            torch.testing.assert_close(teacher.logits(batch, batch.images), table[rows])
    taught = train(network(), FAKE, settings, seed=5, teacher=teacher).model
    alone = train(network(), FAKE, replace(settings, distill_weight=0.0), seed=5).model
    assert not same_state(taught, alone)


def test_an_onnx_file_teaches_as_its_network(tmp_path):
    teacher = network(seed=1).eval()
    path = tmp_path / "teacher.onnx"
    path.write_bytes(onnx_bytes(teacher, FAKE.input_shape))
    opened = teacher_from_file(path, FAKE, seed=0, mixes=True)
    batch = next(batches(FAKE, TAUGHT, 0, 0))
    expected = logits(teacher, batch.images, 64)
    torch.testing.assert_close(opened.logits(batch, batch.images), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_an_onnx_file_is_read_with_the_weights_beside_it(tmp_path, monkeypatch):
    files = {}
    for name, seed in (("mine", 1), ("other", 2)):
        (tmp_path / name).mkdir()
        files[name] = tmp_path / name / "teacher.onnx"
        model = onnx.load_from_string(onnx_bytes(network(seed=seed).eval(), FAKE.input_shape))
        external = {"save_as_external_data": True, "location": "teacher.data", "size_threshold": 64}
        onnx.save(model, files[name], **external)
    monkeypatch.chdir(tmp_path / "other")
    opened, other = (teacher_from_file(path, FAKE, seed=0, mixes=True) for path in files.values())
    batch = next(batches(FAKE, TAUGHT, 0, 0))
    expected = logits(network(seed=1).eval(), batch.images, 64)
    torch.testing.assert_close(opened.logits(batch, batch.images), expected, atol=1e-4, rtol=1e-4)
    assert opened.identity != other.identity
    files["mine"].with_name("teacher.data").unlink()
    with pytest.raises(AmcError, match="cannot be loaded by onnxruntime"):
        teacher_from_file(files["mine"], FAKE, seed=0, mixes=True)


def test_a_function_gets_images_as_it_would_be_called_with():
    def flat(images):
        return images.view(len(images), -1)[:, :4]

    settings = TrainSettings(epochs=1, distill_weight=0.5, precision="fp32")
    assert train(network(), FAKE, settings, seed=0, teacher=FunctionTeacher(flat, "flat")).epochs == 1


def test_a_folder_that_cannot_be_made_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("")
    teacher = FunctionTeacher(lambda _: pytest.fail("asked"), "unasked")
    with pytest.raises(AmcError, match=r"teacher_cache=.*file/cache cannot be made: Not a directory"):
        train(network(), FAKE, TAUGHT, seed=0, teacher=teacher, teacher_cache=tmp_path / "file/cache")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.npy", None, "no such file"),
        ("odd.txt", b"x", "expected a file .npy"),
        ("bad.npy", b"x", "cannot be read"),
        ("bad.safetensors", b"x", "cannot be read"),
        ("bad.onnx", b"x", "cannot be loaded by onnxruntime"),
        ("few.npy", np.zeros((3, 4), np.float32), r"shape \(3, 4\), expected \(64, 4\)"),
        ("wide.npy", np.zeros((64, 5), np.float32), r"shape \(64, 5\)"),
        ("whole.npy", np.zeros((64, 4), np.int64), "int64"),
        ("nan.npy", np.full((64, 4), np.nan, np.float32), "NaN"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(name, content, message, tmp_path):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(AmcError, match=message) as caught:
        teacher_from_file(path, FAKE, seed=0, mixes=False)
    assert "\n" not in str(caught.value)


def test_a_pickle_in_an_array_is_not_run(tmp_path):
    path = tmp_path / "evil.npy"
    np.save(path, np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(AmcError, match="cannot be read"):
        teacher_from_file(path, FAKE, seed=0, mixes=False)


def test_a_file_of_logits_knows_no_mixed_images(tmp_path):
    path = tmp_path / "logits.npy"
    np.save(path, np.zeros((64, 4), np.float32))
    with pytest.raises(AmcError, match="mixes images"):
        teacher_from_file(path, FAKE, seed=0, mixes=True)


def test_a_function_that_returns_something_else():
    settings = TrainSettings(epochs=1, distill_weight=0.5)
    for found, message in ((lambda x: x, "torch.float32"), (lambda x: [1], "returned list")):
        with pytest.raises(AmcError, match=message):
            train(network(), FAKE, settings, seed=0, teacher=FunctionTeacher(found, "mine"))


def residual():
    return build(ModelSpec("resnet20", 4, (3, 8, 8), ()), trust_dotted_path=False)


def test_hints_are_at_the_last_readers_of_the_streams():
    places = hint_places(trace(residual(), torch.zeros(1, 3, 8, 8)))
    assert places
    assert places[-1] == "linear"
    plain = hint_places(trace(network(), torch.zeros(1, 3, 8, 8)))
    assert plain == ("4",)


def test_hints_start_at_the_least_squares_and_know_a_linear_student():
    teacher = network(seed=1).eval()
    student = network(seed=1)
    with torch.no_grad():  # the same features in another order and scale
        order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
        student[1].weight.copy_(teacher[1].weight[order] * 2)
        student[1].bias.copy_(teacher[1].bias[order] * 2)
        student[0].weight.copy_(teacher[0].weight[order])
    images = FAKE.calibration.images
    hints = Hints(student, teacher, ["4"], images, fixed=True)
    student.eval()(images), teacher(images)
    assert hints.loss().item() < 1e-6
    assert not any(each.requires_grad for each in hints.parameters())
    other = network(seed=3).eval()
    hints = Hints(other, teacher, ["4"], images, fixed=False)
    other(images), teacher(images)
    rows = [
        part.permute(0, 2, 3, 1).flatten(0, 2).double()
        for part in (other[:4](images).detach(), teacher[:4](images).detach())
    ]
    own = torch.cat([rows[0], torch.ones(len(rows[0]), 1, dtype=torch.double)], 1)
    error = (own @ torch.linalg.lstsq(own, rows[1]).solution - rows[1]).square().mean()
    expected = error / rows[1].var(0, correction=0).mean()
    assert hints.loss().item() == pytest.approx(expected.item(), rel=1e-3)


class Tokens(nn.Module):
    """Reads channels that are the last axis, as transformers do: (N, H, W, C)."""

    def __init__(self, width):
        super().__init__()
        self.first = nn.Linear(3, width)
        self.second = nn.Linear(width, 4)

    def forward(self, images):
        return self.second(self.first(images.permute(0, 2, 3, 1)).relu()).mean((1, 2))


def test_hints_know_where_the_channels_are():
    teacher, images = Tokens(6).eval(), FAKE.calibration.images
    student = Tokens(5).eval()
    with torch.no_grad():
        for own, theirs in zip(student.first.parameters(), teacher.first.parameters(), strict=True):
            own.copy_(theirs[:5])
    assert hint_places(trace(teacher, torch.zeros(1, 3, 8, 8))) == ("second",)
    hints = Hints(student, teacher, ["second"], images, fixed=True)
    assert [tuple(each.shape) for each in hints.maps] == [(6, 6)]
    student(images), teacher(images)
    expected = (hints._theirs["second"][..., 5] - hints._theirs["second"][..., 5].mean()).square().mean()
    assert hints.loss().item() * hints.scales[0] <= expected.item() / 6  # five of six are known exactly


@pytest.mark.parametrize("maps", ["trained", "fixed"])
def test_hints_train_and_resume_bit_for_bit(maps, tmp_path):
    settings = TrainSettings(epochs=2, precision="fp32", hint_weight=1.0, hint_maps=maps)
    options = {
        "splits": FAKE,
        "settings": settings,
        "seed": 0,
        "teacher": network(seed=1),
        "hint_places": ["4"],
    }
    whole = train(network(), **options).model
    alone = train(network(), FAKE, replace(settings, hint_weight=0.0), seed=0).model
    assert not same_state(whole, alone)
    file = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        train(network(), **options, checkpoint=file, on_epoch=stop_after(1))
    model = train(network(), **options, checkpoint=file).model
    assert same_state(model, whole)
    assert not model[4]._forward_pre_hooks


def test_hints_count_wholly_beside_soft_labels():
    settings = TrainSettings(epochs=1, precision="fp32", distill_weight=1.0)
    options = {"seed": 0, "teacher": network(seed=1), "hint_places": ["4"]}
    plain = train(network(), FAKE, settings, **options).model
    hinted = train(network(), FAKE, replace(settings, hint_weight=1.0), **options).model
    assert not same_state(hinted, plain)


def test_hints_need_a_network():
    settings = TrainSettings(epochs=1, hint_weight=1.0)
    with pytest.raises(AmcError, match="hint_weight=1 compares features"):
        train(network(), FAKE, settings, seed=0, teacher=FunctionTeacher(lambda x: x, "f"), hint_places=["4"])
    with pytest.raises(AmcError, match="hint_weight=1: the network has no layer whose inputs"):
        train(network(), FAKE, settings, seed=0, teacher=network(seed=1))
