"""The sequential refit: exact where nothing was cut, better than the looked-up refit where something was."""

import copy

import pytest
import torch

from amc.compressor import Compressor, CompressorSettings
from amc.errors import AmcError
from amc.evaluation import agreement, logits
from amc.graph import trace
from amc.models import resnet20
from amc.reconstruction import solve_rows
from amc.sequential import SequentialRefit
from tests.networks import CLASSES, SHAPE, Chain, Grouped, Residual, Separable, randomised


def prepared(network, data, **settings):
    graph = trace(network, torch.zeros(1, *SHAPE))
    images = data.calibration.images
    compressor = Compressor(network, graph, data.calibration, data.search_val, CompressorSettings(**settings))
    return compressor, images


def refitted(network, compressor, images, widths, **options):
    pruned = compressor.pruned_model(widths).eval()
    keeps = compressor.plan.keeps(compressor.kept(widths))
    count = SequentialRefit(network.eval(), images)(pruned, keeps, **options)
    return pruned, count


@pytest.mark.parametrize("make", [Chain, Residual, Separable, Grouped, lambda: resnet20(CLASSES)])
def test_an_uncut_network_keeps_its_outputs(make, data):
    network = randomised(make(), seed=1).eval()
    compressor, images = prepared(network, data)
    same, _ = refitted(network, compressor, images, compressor.graph.dense_widths, reestimate_norms=False)
    held = data.search_val.images
    assert torch.allclose(logits(same, held, 64), logits(network, held, 64), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("reestimate", [True, False])
def test_it_agrees_better_with_the_dense_network_than_the_looked_up_refit(trained, data, reestimate):
    compressor, images = prepared(trained, data)
    widths = tuple(max(1, width // 4) for width in compressor.graph.dense_widths)
    before = compressor.evaluate(widths).agreement
    pruned, count = refitted(trained, compressor, images, widths, reestimate_norms=reestimate)
    held = data.search_val.images
    assert count > 0
    assert agreement(logits(pruned, held, 64), logits(trained, held, 64)) > before


def test_the_dense_network_and_the_shapes_are_left_alone(trained, data):
    compressor, images = prepared(trained, data)
    dense = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    widths = tuple(max(1, width // 2) for width in compressor.graph.dense_widths)
    shapes = {name: tensor.shape for name, tensor in compressor.pruned_model(widths).state_dict().items()}
    pruned, _ = refitted(trained, compressor, images, widths)
    assert {name: tensor.shape for name, tensor in pruned.state_dict().items()} == shapes
    assert all(torch.equal(tensor, dense[name]) for name, tensor in trained.state_dict().items())


def test_the_error_of_the_other_branch_is_made_up_for(data):
    """The identity branch delivers a wrong sum; only the convolution beside it can correct that."""
    network = randomised(Residual(), seed=2).eval()
    images = data.calibration.images
    broken = copy.deepcopy(network)
    with torch.no_grad():
        broken.stem[0].weight[:3] *= 0.5
    SequentialRefit(network, images)(broken, {}, reestimate_norms=False)
    with torch.no_grad():
        wanted = network.stem(images) + network.same(network.stem(images))
        branch = broken.stem(images)
        uncorrected = branch + network.same(network.stem(images))
        corrected = branch + broken.same(branch)
    assert (corrected - wanted).square().mean() < 0.9 * (uncorrected - wanted).square().mean()


@pytest.mark.parametrize("intercept", [True, False])
def test_depthwise_solution_equals_lstsq_per_channel(intercept):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 1, 3, 3, generator=generator)
    patches = torch.randn(200, 27, generator=generator)
    targets = torch.randn(200, 3, generator=generator)
    solved, shift = solve_rows(patches, targets, weight, groups=3, intercept=intercept, ridge=1e-9)
    for channel in range(3):
        x = patches[:, 9 * channel : 9 * channel + 9]
        x = torch.cat([x, torch.ones(200, 1)], dim=1) if intercept else x
        expected = torch.linalg.lstsq(x, targets[:, channel : channel + 1]).solution[:, 0]
        assert torch.allclose(solved[channel].flatten(), expected[:9], atol=1e-4)
        assert shift[channel].item() == pytest.approx(expected[9].item() if intercept else 0.0, abs=1e-4)


def test_a_network_that_cannot_be_traced_is_named(data):
    class Branching(Chain):
        def features(self, x: torch.Tensor) -> torch.Tensor:
            return super().features(x if x.sum() > 0 else -x)

    with pytest.raises(AmcError, match="Branching cannot be traced"):
        SequentialRefit(Branching().eval(), data.calibration.images)
