"""Two processes train as one does: the same batches, gradients and statistics, up to rounding."""

import os
import shutil
import socket
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

from amc.data.splits import WHOLE, Part
from amc.errors import AmcError
from amc.training.batches import batches
from amc.training.loop import train
from amc.training.parallel.group import Group
from amc.training.settings import TrainSettings
from tests.amc.training.test_training import FAKE, network

TOLERANCE = 1e-4
"""Largest difference of a weight between one process and two, relative to its tensor's largest weight."""
SETTINGS = TrainSettings(
    epochs=3,
    lr=0.05,
    precision="fp32",
    ema=0.9,
    accumulate=3,
    views=2,
    mixup=0.2,
    distill_weight=0.5,
    grad_clip=1.0,
)


def serve(rank, count, port, folder, name):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=count)
    found = globals()[name](Group(rank, count), folder)
    torch.save(found, folder / f"{name}_{rank}.pt")
    dist.destroy_process_group()


def together(name, folder, count=2):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    torch.multiprocessing.spawn(serve, (count, port, folder, name), nprocs=count)
    return [torch.load(folder / f"{name}_{rank}.pt", weights_only=False) for rank in range(count)]


class Activated(nn.BatchNorm2d):
    """A batch norm and its activation in one module, as timm's."""

    def forward(self, values):
        return super().forward(values).relu()


def norms(group, kind):
    """Return output, gradients and statistics of a batch norm on this process's part."""
    torch.manual_seed(0)
    values, upstream = torch.randn(6, 3, 4, 4) * 3 + 10, torch.randn(6, 3, 4, 4)
    norm = kind(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
    given = group.part.of(values).clone().requires_grad_(True)
    with group.together(norm):
        found = norm(given)
    found.backward(group.part.of(upstream))
    gradients = [group.sum(each.grad) for each in norm.parameters()]
    return found.detach(), given.grad, gradients, dict(norm.state_dict())


def tasks(group, folder):
    """Return the states of several trainings, in one pair of processes as starting them is slow.

    One is whole, one learns hints, one is taken up again on all processes, and so are one whose weights lie
    in parts on them and one whose processes have norms of their own.
    """
    mixed = {"splits": FAKE, "seed": 3, "teacher": network(seed=1), "group": group}
    plain = replace(SETTINGS, mixup=0.0, views=0, accumulate=1, distill_weight=0.0, hint_weight=0.5)
    records = []
    first = train(network(), settings=SETTINGS, **mixed, on_epoch=records.append)
    hinted = train(network(), settings=plain, hint_places=["4"], **mixed)
    kept, again = taken_up(folder / f"run_{group.count}", SETTINGS, mixed, records)
    parts = replace(SETTINGS, sharded=group.count > 1, best=True)
    in_parts, at_end = taken_up(folder / f"parts_{group.count}", parts, mixed, records)
    trained = (first, hinted, kept, again, in_parts, at_end)
    states = [each.model.state_dict() for each in trained]
    losses = [(record.epoch, record.loss) for record in records]
    own = taken_up(folder / f"own_{group.count}", replace(SETTINGS, sync_norms=False), mixed, [])
    found = [norms(group, kind) for kind in (nn.BatchNorm2d, Activated)]
    idle = network()
    idle.register_parameter("idle", nn.Parameter(torch.ones(2)))
    states.append(train(idle, settings=replace(plain, hint_weight=0.0), **mixed).model.state_dict())
    return states, losses, first.best_top1, found, [each.model.state_dict() for each in own]


def refusals(group, folder):
    """Return why trainings on batches of too few images are refused."""
    two, one = (next(FAKE.train_batches(0, 0, Part(0, count))) for count in (8, 16))
    told = []
    for shown in ([one], [two, one]):
        splits = replace(
            FAKE,
            train_batches=lambda epoch, seed, shown=shown: iter(shown),
            steps_per_epoch=len(shown),
            order=None,
            train_digest=None,
        )
        try:
            train(network(), splits, TrainSettings(epochs=1, precision="fp32"), seed=0, group=group)
        except AmcError as error:
            told.append(str(error))
    return told


def taken_up(file, settings, mixed, records):
    """Train wholly, and again from the checkpoint of the first epoch."""
    early = file.with_suffix(".early")

    def note(record):
        if record.epoch == 1:
            shutil.copy(file, early)

    writes = mixed["group"].writes
    whole = train(network(), settings=settings, **mixed, checkpoint=file if writes else None, on_epoch=note)
    rest = train(
        network(), settings=settings, **mixed, checkpoint=early if writes else None, on_epoch=records.append
    )
    return whole, rest


def check_norms(left, right, whole):
    """Compare the outputs, gradients and statistics of two parts with those of the whole batch."""
    output, inward, gradients, state = whole
    torch.testing.assert_close(torch.cat([left[0], right[0]]), output, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat([left[1], right[1]]), inward, atol=1e-5, rtol=1e-4)
    for mine, expected in zip(left[2], gradients, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-4, rtol=1e-4)
    for name, tensor in state.items():
        torch.testing.assert_close(left[3][name], tensor, atol=1e-5, rtol=1e-5)


def check_own_norms(own, single):
    """Compare a training, and the same taken up again, whose processes had norms of their own."""
    whole, rest = own
    statistics = [name for name in whole if "running_var" in name]
    assert statistics
    for name, tensor in whole.items():
        assert torch.equal(rest[name], tensor), name
    assert not any(torch.allclose(whole[name], single[name], rtol=1e-4, atol=0) for name in statistics)


@pytest.mark.slow
def test_two_processes_give_the_network_of_one(tmp_path):
    (ours, records, best, left, own), (theirs, silent, other_best, right, _) = together("tasks", tmp_path)
    alone, expected, _, whole, single = tasks(Group(), tmp_path)
    for each in zip(left, right, whole, strict=True):
        check_norms(*each)
    check_own_norms(own, single[0])
    for mine, other, one in zip(ours, theirs, alone, strict=True):
        for name, tensor in one.items():
            assert torch.equal(mine[name], other[name]), name
            scale = tensor.float().abs().max().clamp_min(1e-6)
            assert (mine[name].float() - tensor.float()).abs().max() <= TOLERANCE * scale, name
    assert silent == []
    assert best == other_best
    assert [epoch for epoch, _ in records] == [1, 2, 3, 2, 3, 2, 3]  # those taken up ran two
    assert [loss for _, loss in records] == pytest.approx([loss for _, loss in expected], rel=1e-3)


@pytest.mark.slow
def test_a_batch_that_leaves_a_process_without_images_is_one_line_on_all(tmp_path):
    mine, other = together("refusals", tmp_path)
    assert mine == other
    assert mine[0].startswith("2 processes train on batches of 1 images: expected at most 1")
    assert mine[1].startswith("a batch of 1 images leaves 1 of the 2 training processes without one")


def whole_batches(epoch, seed):
    return FAKE.train_batches(epoch, seed)


def with_another_argument(epoch, seed, scale=1.0):
    return ((images * scale, labels) for images, labels in FAKE.train_batches(epoch, seed))


def with_a_part_by_name(epoch, seed, *, part=WHOLE):
    return FAKE.train_batches(epoch, seed, part)


@pytest.mark.parametrize(
    "loaded", [FAKE.train_batches, whole_batches, with_another_argument, with_a_part_by_name]
)
def test_parts_are_the_whole_batch(loaded):
    splits = replace(FAKE, train_batches=loaded)
    for settings in (SETTINGS, replace(SETTINGS, mixup=0.0)):
        for whole, left, right in zip(
            batches(splits, settings, 1, 0),
            batches(splits, settings, 1, 0, Part(0, 2)),
            batches(splits, settings, 1, 0, Part(1, 2)),
            strict=True,
        ):
            assert torch.equal(torch.cat([left.images, right.images]), whole.images)
            assert torch.equal(torch.cat([left.targets, right.targets]), whole.targets)
            assert torch.equal(torch.cat([left.labels, right.labels]), whole.labels)
