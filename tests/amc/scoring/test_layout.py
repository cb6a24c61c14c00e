"""Networks that depend on the order of their values in memory, and networks that write into their input."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from amc import data
from amc.candidate.evaluator import channel_evaluator
from amc.candidate.pruning import prune
from amc.candidate.settings import CandidateSettings, PruneSettings
from amc.data import Splits
from amc.graph.trace import trace
from amc.notes import note_once
from amc.runtimes.reference import laid_out
from amc.scoring.layout import image_like, memory_format_of, writes_into_input
from amc.scoring.run import logits
from amc.scoring.scores import top1
from amc.training.loop import train
from amc.training.settings import TrainSettings

IMAGES = image_like((3, 8, 8))


class Plain(nn.Module):
    """Any step between two convolutions and a linear layer on the whole map."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.linear = nn.Linear(8 * 8 * 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.flat(torch.relu(self.second(torch.relu(self.first(x))))))

    def flat(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class Viewed(Plain):
    def flat(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1)


class ViewedInTraining(Plain):
    def flat(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1) if self.training else x.flatten(1)


class Strided(Plain):
    def flat(self, x: Tensor) -> Tensor:
        return x.as_strided((len(x), x[0].numel()), (x[0].numel(), 1))


class WritesInto(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        x /= 0.5
        return super().forward(x)


class StartsInPlace(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.leaky_relu(x, 0.5, inplace=True))


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Forget what was noted, as a new process does."""
    note_once.cache_clear()
    yield
    note_once.cache_clear()


@pytest.fixture(scope="module")
def splits() -> Splits:
    return data.synthetic(num_classes=4, image_size=8, train=64, search_val=64, calibration=32, test=32)


@pytest.mark.parametrize("kind", [Viewed, ViewedInTraining, Strided])
def test_what_does_not_run_in_channels_last_runs_contiguous_and_is_named_once(kind, caplog) -> None:
    network = kind()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    draws = torch.get_rng_state()
    with caplog.at_level(logging.WARNING):
        assert {memory_format_of(network, IMAGES) for _ in range(2)} == {torch.contiguous_format}
    (record,) = caplog.records
    assert f"{kind.__name__} runs in contiguous memory" in record.message
    assert "\n" not in record.message
    assert torch.equal(draws, torch.get_rng_state())
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("network", [Plain(), WritesInto(), nn.Sequential(Plain(), nn.BatchNorm1d(4))])
def test_all_others_run_in_channels_last(network, caplog) -> None:
    assert memory_format_of(network, IMAGES) == torch.channels_last
    assert not caplog.records


def test_a_network_that_runs_in_no_format_is_left_to_its_caller() -> None:
    assert memory_format_of(Plain(), image_like((3, 9, 9))) == torch.channels_last


@pytest.mark.parametrize(("kind", "writes"), [(Plain, False), (WritesInto, True), (StartsInPlace, True)])
def test_one_trial_tells_whether_a_network_writes_into_its_input(kind, writes) -> None:
    images = IMAGES.clone()
    assert writes_into_input(kind(), images) is writes
    assert torch.equal(images, IMAGES)


@pytest.mark.parametrize("kind", [Viewed, WritesInto])
def test_such_networks_are_trained_judged_and_pruned_on_unchanged_images(kind, splits) -> None:
    torch.manual_seed(0)
    stored = [part.images.clone() for part in (splits.search_val, splits.calibration)]
    settings = TrainSettings(epochs=2, lr=0.05, distill_weight=0.5)
    model = train(kind(), splits, settings, seed=0, teacher=kind()).model
    graph = trace(model, torch.zeros(1, 3, 8, 8))
    evaluator = channel_evaluator(
        model, graph, splits.calibration, splits.search_val, CandidateSettings(sequential_images=0)
    )
    widths = [width // 2 for width in graph.dense_widths]
    evaluator.evaluate(widths)
    prune(evaluator.builder, splits.calibration.images, widths, PruneSettings())
    assert torch.equal(splits.search_val.images, stored[0])
    assert torch.equal(splits.calibration.images, stored[1])
    truth = copy.deepcopy(model)(stored[0].clone())
    assert evaluator.dense.top1 == pytest.approx(top1(truth, splits.search_val.labels))
    torch.testing.assert_close(logits(model, splits.search_val.images, 16), truth.detach())


@pytest.mark.parametrize("kind", [Plain, Viewed, WritesInto])
def test_timed_networks_get_the_same_images_in_every_run(kind) -> None:
    network, images = laid_out(kind().eval(), IMAGES, device="cpu")
    first = network(images()).detach()
    assert torch.equal(first, network(images()).detach())
