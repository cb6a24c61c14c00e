"""The sequential refit: exact where nothing was cut, better than the looked-up refit where something was."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amc.candidate.evaluator import channel_evaluator
from amc.candidate.settings import CandidateSettings
from amc.cutting.slicing import Cut
from amc.data import LabelledImages
from amc.graph.trace import trace
from amc.models import resnet20
from amc.refit.images import RefitImages
from amc.refit.recorded import RecordedRefit
from amc.refit.sequential import SequentialRefit
from amc.refit.traced import TracedRefit
from amc.scoring.run import logits
from amc.scoring.scores import agreement
from tests.networks import CLASSES, SHAPE, Chain, Grouped, Residual, Separable, randomised
from tests.params import slow

UNCUT = Cut((), {}, {})


def prepared(network, data, **settings):
    graph = trace(network, torch.zeros(1, *SHAPE))
    images = data.calibration.images
    settings = CandidateSettings(**settings)
    return channel_evaluator(network, graph, data.calibration, data.search_val, settings), images


def traced(network, images):
    return TracedRefit(network, RefitImages(images, 0), positions_per_image=32)


def refitted(network, evaluator, images, widths, **options):
    cut = evaluator.builder.cut(widths)
    pruned = evaluator.builder.pruned_model(cut).eval()
    count = SequentialRefit(network.eval(), images)(pruned, cut, **options)
    return pruned, count


@pytest.mark.parametrize(
    "make", [Residual, Grouped, *map(slow, [Chain, Separable, lambda: resnet20(CLASSES)])]
)
@pytest.mark.parametrize("rounds", [slow(0), 3])
def test_an_uncut_network_keeps_its_outputs(make, rounds, data):
    network = randomised(make(), seed=1).eval()
    evaluator, images = prepared(network, data)
    same, _ = refitted(
        network, evaluator, images, evaluator.builder.dense_widths,
        reestimate_norms=False, activation_rounds=rounds,
    )  # fmt: skip
    held = data.search_val.images
    assert torch.allclose(logits(same, held, 64), logits(network, held, 64), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("reestimate", [True, False])
def test_it_agrees_better_with_the_dense_network_than_the_looked_up_refit(trained, data, reestimate):
    evaluator, images = prepared(trained, data)
    widths = tuple(max(1, width // 4) for width in evaluator.builder.dense_widths)
    before = evaluator.evaluate(widths).agreement
    pruned, count = refitted(trained, evaluator, images, widths, reestimate_norms=reestimate)
    held = data.search_val.images
    assert count > 0
    assert agreement(logits(pruned, held, 64), logits(trained, held, 64)) > before


def test_free_clipped_outputs_reduce_the_error(trained, data):
    evaluator, images = prepared(trained, data)
    widths = tuple(max(1, width // 2) for width in evaluator.builder.dense_widths)
    held = data.search_val.images
    wanted = logits(trained, held, 64)
    errors = []
    for rounds in (0, 3):
        pruned, _ = refitted(
            trained, evaluator, images, widths, reestimate_norms=False, activation_rounds=rounds
        )
        errors.append(float((logits(pruned, held, 64) - wanted).square().mean()))
    assert errors[1] < errors[0]


def test_held_out_images_prevent_overfitting_to_correlated_positions():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(240, 3, 2, 2, generator=generator)
    images = F.interpolate(coarse, SHAPE[1:])  # four places each, however many are looked at
    network = randomised(Separable(), seed=1).eval()
    graph = trace(network, torch.zeros(1, *SHAPE))
    data = LabelledImages(images[:40], torch.zeros(40, dtype=torch.long))
    evaluator = channel_evaluator(network, graph, data, data, CandidateSettings())
    widths = tuple(max(1, 3 * width // 4) for width in graph.dense_widths)
    errors = []
    for held_out in (0.0, 0.2):
        pruned = evaluator.builder.pruned_model(evaluator.builder.cut(widths)).eval()
        refit = SequentialRefit(network, images[:40], held_out=held_out)
        refit(pruned, evaluator.builder.cut(widths), reestimate_norms=False)
        unseen = images[40:]
        errors.append(float((logits(pruned, unseen, 64) - logits(network, unseen, 64)).square().mean()))
    assert errors[1] < errors[0], errors


class Tokens(nn.Module):
    """A linear layer that reads (tokens, images, features), or the images first."""

    def __init__(self, first):
        super().__init__()
        self.first, self.patches, self.read = first, nn.Conv2d(3, 8, 3, stride=3), nn.Linear(8, CLASSES)

    def forward(self, x):
        tokens = self.patches(x).flatten(2)
        return self.read(tokens.permute((0, 2, 1) if self.first else (2, 0, 1))).mean(1 if self.first else 0)


@pytest.mark.parametrize(
    ("images", "held", "first", "expected"),
    [
        (70, 10, True, 60),
        (70, 10, False, 32),  # the second block of 32 has held-out images
        (20, 4, False, 20),  # so has the only one: no rows are held out
        (70, 0, False, 70),
    ],
)
def test_held_out_images_stay_out_of_layers_that_read_the_tokens_first(images, held, first, expected):
    given = RefitImages(torch.randn(images, *SHAPE), held)
    refit = TracedRefit(Tokens(first).eval(), given, positions_per_image=32)
    assert refit.solved_rows == {"read": 16 * expected}


def test_the_dense_network_and_the_shapes_are_left_alone(trained, data):
    evaluator, images = prepared(trained, data)
    dense = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    widths = tuple(max(1, width // 2) for width in evaluator.builder.dense_widths)
    looked_up = evaluator.builder.pruned_model(evaluator.builder.cut(widths))
    shapes = {name: tensor.shape for name, tensor in looked_up.state_dict().items()}
    pruned, _ = refitted(trained, evaluator, images, widths)
    assert {name: tensor.shape for name, tensor in pruned.state_dict().items()} == shapes
    assert all(torch.equal(tensor, dense[name]) for name, tensor in trained.state_dict().items())


def test_the_error_of_the_other_branch_is_compensated(data):
    """The identity branch delivers a wrong sum; only the convolution beside it can correct that."""
    network = randomised(Residual(), seed=2).eval()
    images = data.calibration.images
    broken = copy.deepcopy(network)
    with torch.no_grad():
        broken.stem[0].weight[:3] *= 0.5
    SequentialRefit(network, images)(broken, UNCUT, reestimate_norms=False)
    with torch.no_grad():
        wanted = network.stem(images) + network.same(network.stem(images))
        branch = broken.stem(images)
        uncorrected = branch + network.same(network.stem(images))
        corrected = branch + broken.same(branch)
    assert (corrected - wanted).square().mean() < 0.9 * (uncorrected - wanted).square().mean()


class LateShortcut(nn.Module):
    """Like the blocks of most residual networks: the shortcut is computed after the layers beside it."""

    def __init__(self, spoil=False):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, CLASSES)
        self.spoil = spoil

    def forward(self, images):
        x = torch.relu(self.stem(images))
        out = self.conv(x)
        if self.spoil:
            x.mul_(0.5)
        return self.head((out + self.down(x)).mean((2, 3)))


def test_a_shortcut_that_is_computed_late_is_computed_before_the_layer_that_corrects_it(data):
    network = randomised(LateShortcut(), seed=2).eval()
    images = data.calibration.images
    refit = traced(network, images)
    assert refit.modules == ("stem", "down", "conv", "head")
    broken = copy.deepcopy(network)
    with torch.no_grad():
        broken.down.weight[:, :4] = 0
    refit(broken, UNCUT, ridge=1e-4, reestimate_norms=False, activation_rounds=0)
    assert refit.corrected["conv"] == "down"
    assert refit.corrected["down"] is None  # one corrects the other, not both each other

    with torch.no_grad():
        x = torch.relu(network.stem(images))
        found = (broken.conv(x) + broken.down(x) - network.conv(x) - network.down(x)).square().mean()
        alone = (broken.down(x) - network.down(x)).square().mean()
    assert found < 0.9 * alone


def test_an_operation_in_place_forbids_another_order(data):
    network = randomised(LateShortcut(spoil=True), seed=2).eval()
    refit = traced(network, data.calibration.images)
    assert refit.modules == ("stem", "conv", "down", "head")


def test_residual_networks_of_the_zoo_are_corrected_in_every_block_but_the_first(data):
    refit = traced(randomised(resnet20(CLASSES)).eval(), data.calibration.images[:8])
    ends = {name: branch for name, branch in refit.corrected.items() if name.endswith("conv2")}
    assert len(ends) == 9
    assert all(branch is not None for branch in ends.values())


def test_a_layer_whose_weight_another_one_holds_keeps_it(data):
    network = randomised(LateShortcut(), seed=2).eval()
    network.conv.weight = nn.Parameter(network.conv.weight.detach())
    network.other = nn.Conv2d(8, 8, 3, padding=1)
    network.other.weight = network.conv.weight
    broken = copy.deepcopy(network)
    with torch.no_grad():
        broken.stem.weight[:, :2] = 0
    SequentialRefit(network, data.calibration.images)(broken, UNCUT, reestimate_norms=False)
    assert torch.equal(broken.conv.weight, network.conv.weight)
    assert not torch.equal(broken.down.weight, network.down.weight)


class Scaled(Chain):
    """A learned vector, without a batch axis, goes through layers and scales a map."""

    def __init__(self):
        super().__init__()
        self.vector = nn.Parameter(torch.randn(4))
        self.scale = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 12))

    def features(self, x):
        return super().features(x) * self.scale(self.vector)[:, None, None]


class Normed(Residual):
    """Also normalises its outputs."""

    def __init__(self):
        super().__init__()
        self.last = nn.BatchNorm1d(CLASSES)

    def forward(self, x):
        return self.last(super().forward(x))


def looked_at(x):
    """Read the shape of a map, which no operation between layers needs."""
    _, _, _, _ = x.shape
    x.size(0)
    return x


class Looking(Normed):
    """Reads the shapes of maps between layers, norms, sums and activations."""

    def features(self, x):
        x = self.stem[2](looked_at(self.stem[1](looked_at(self.stem[0](x)))))
        x = F.relu(looked_at(x + looked_at(self.same[2](looked_at(self.same[1](self.same[0](x)))))))
        down = looked_at(self.down(x))
        return F.relu(looked_at(down + self.shortcut[1](looked_at(self.shortcut[0](x)))))


@pytest.mark.parametrize("make", [Looking, lambda: nn.SyncBatchNorm.convert_sync_batchnorm(Normed())])
@pytest.mark.parametrize("reestimate", [True, False])
def test_shapes_that_are_read_and_synchronised_norms_change_no_refit(make, reestimate, data):
    found = []
    for network in (randomised(each()) for each in (Normed, make)):
        evaluator, images = prepared(network, data)
        cut = evaluator.builder.cut([max(1, width // 2) for width in evaluator.builder.dense_widths])
        norms = evaluator.builder.graph.norm_after
        recorded = RecordedRefit(network, RefitImages(images, 0), positions_per_image=32, norms=norms)
        for refit, options in ((SequentialRefit(network, images), {"activation_rounds": 2}), (recorded, {})):
            pruned = evaluator.builder.pruned_model(cut).eval()
            refit(pruned, cut, ridge=1e-4, reestimate_norms=reestimate, **options)
            found.append(pruned.state_dict())
            assert getattr(refit, "way", "traced") == "traced"
    for plain, other in zip(found[:2], found[2:], strict=True):
        assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_layers_that_read_one_vector_are_left_alone():
    refit = traced(randomised(Scaled()).eval(), torch.randn(40, *SHAPE))
    assert set(refit.corrected) == {"second", "head"}
