"""The sequential refit of networks that run in unusual ways: shared modules, untraceable forward passes."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amc.candidate.builder import CandidateBuilder
from amc.candidate.settings import CandidateSettings
from amc.errors import AmcError
from amc.graph.trace import trace
from amc.refit.sequential import SequentialRefit
from amc.scoring.run import outputs
from amc.scoring.scores import likeness
from tests.networks import CLASSES, SHAPE, Chain, Headed, conv_bn, randomised
from tests.params import slow


class Recurrent(Headed):
    """A convolution and its norm run three times with the same weights."""

    def __init__(self):
        super().__init__(10)
        self.stem, self.narrow = conv_bn(3, 12), nn.Conv2d(12, 6, 1)
        self.again, self.last = conv_bn(6, 6), conv_bn(6, 10)

    def features(self, x):
        x = self.narrow(self.stem(x))
        y = self.again(x)
        for _ in range(2):
            y = self.again(x + y)
        return self.last(y)


class OneNormForTwo(Headed):
    """Two convolutions share a batch norm."""

    def __init__(self):
        super().__init__(10)
        self.stem, self.norm, self.last = conv_bn(3, 12), nn.BatchNorm2d(8), conv_bn(8, 10)
        self.one, self.two = nn.Conv2d(12, 8, 1, bias=False), nn.Conv2d(12, 8, 3, padding=1, bias=False)

    def features(self, x):
        x = self.stem(x)
        return self.last(F.relu(self.norm(self.one(x))) + F.relu(self.norm(self.two(x))))


class NormsOfItsOwn(Headed):
    """A convolution without bias reads two maps, and each call has a norm of its own."""

    def __init__(self):
        super().__init__(10)
        self.stem, self.shared, self.last = (
            conv_bn(3, 12),
            nn.Conv2d(12, 8, 3, padding=1, bias=False),
            conv_bn(8, 10),
        )
        self.large, self.small = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def features(self, x):
        x = self.stem(x)
        large = F.relu(self.large(self.shared(x)))
        small = F.relu(self.small(self.shared(F.max_pool2d(x, 2))))
        return self.last(large + F.interpolate(small, size=12))


class OptionalArguments(Chain):
    """More may be given than images, and never is."""

    def forward(self, x, mask=None, *others, scale=1.0, **options):
        if mask is not None:
            x = x * mask
        for other in others:
            x = x + other
        return super().forward(x) * scale * len([1, *options])


class ChunkLoop(Headed):
    """A loop over the pieces of a map."""

    def __init__(self):
        super().__init__(10)
        self.stem, self.middle, self.last = conv_bn(3, 12), conv_bn(12, 8), conv_bn(8, 10)

    def features(self, x):
        parts = [part * 0.5 for part in self.middle(self.stem(x)).chunk(2, 1)]
        return self.last(torch.cat(parts, 1))


class ImageLoop(ChunkLoop):
    """A loop over the images, a few at a time."""

    def forward(self, x):
        return torch.cat([super(ImageLoop, self).forward(part) for part in x.split(8)])


class Guarded(ChunkLoop):
    """A guard that depends on the values of its input."""

    def features(self, x):
        if not bool(x.isfinite().all()):
            raise ValueError("the images hold NaN")
        x = self.middle(self.stem(x))
        return self.last(x if float(x.sum()) > -1e9 else -x)


class Halved(ChunkLoop):
    """Computes in bfloat16, whatever its weights are in."""

    def forward(self, x):
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return super().forward(x).float()


class Replaced(Chain):
    """The forward pass is replaced after the network is built: the class has another one."""

    def __init__(self):
        super().__init__()
        self.forward = self.by_maximum

    def by_maximum(self, x):
        return self.head(self.features(x).amax((2, 3)))


class OwnConstant(Chain):
    """The forward pass makes a tensor of its own."""

    def features(self, x):
        return super().features(x * torch.tensor([1.0, 0.5, 2.0]).view(1, 3, 1, 1))


class Routed(nn.Module):
    """Layers that get some of the images, by a pixel; the second gets none of most blocks."""

    def __init__(self):
        super().__init__()
        self.stem, self.middle = conv_bn(3, 12), conv_bn(12, 8)
        self.one, self.two = nn.Linear(8, CLASSES), nn.Linear(8, CLASSES)

    def forward(self, x):
        other = x[:, 0, 0, 0] > 1
        x = self.middle(self.stem(x)).mean((2, 3))
        found = x.new_zeros(len(x), CLASSES)
        found[~other], found[other] = self.one(x[~other]), self.two(x[other])
        return found


def settled(network, images):
    """Give the batch norms the statistics of images, as training does."""
    randomised(network, seed=1).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        for _ in range(3):
            network(images.clone())
    return network.eval()


def built(network, data):
    graph = trace(network, torch.zeros(1, *SHAPE))
    builder = CandidateBuilder(network, graph, data.calibration, CandidateSettings())
    cut = builder.cut([max(1, width // 2) for width in graph.dense_widths])
    return graph, cut, builder.pruned_model(cut).eval()


def close(network, pruned, data):
    found, wanted = (outputs(each, data.search_val.images, 64) for each in (pruned, network))
    return likeness(found, wanted)


@pytest.mark.parametrize("reestimate", [True, slow(False)])
@pytest.mark.parametrize(
    ("make", "way"),
    [
        (Recurrent, "traced"),
        (OneNormForTwo, "traced"),
        (NormsOfItsOwn, "traced"),
        (OptionalArguments, "traced"),
        (OwnConstant, "traced"),
        (ChunkLoop, "recorded calls"),
        (ImageLoop, "recorded calls"),
        (Guarded, "recorded calls"),
        (Halved, "recorded calls"),
        (Replaced, "recorded calls"),
    ],
)
def test_the_outputs_come_nearer_to_the_dense_ones(make, way, reestimate, data):
    network = settled(make(), data.calibration.images)
    graph, cut, pruned = built(network, data)
    before = close(network, pruned, data)
    refit = SequentialRefit(network, data.calibration.images, held_out=0.2, norms=graph.norm_after)
    assert refit.way == way
    layers = refit(pruned, cut, reestimate_norms=reestimate)
    assert layers == sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules()) - 1
    assert close(network, pruned, data) > before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pruned.modules())


@pytest.mark.parametrize("make", [Recurrent, ChunkLoop, ImageLoop, Guarded])
def test_an_uncut_network_keeps_its_outputs(make, data):
    network = settled(make(), data.calibration.images)
    graph, _, _ = built(network, data)
    builder = CandidateBuilder(network, graph, data.calibration, CandidateSettings())
    cut = builder.cut(graph.dense_widths)
    same = builder.pruned_model(cut).eval()
    SequentialRefit(network, data.calibration.images, norms=graph.norm_after)(
        same, cut, reestimate_norms=False
    )
    found, wanted = (outputs(each, data.search_val.images, 64) for each in (same, network))
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("reestimate", [True, False])
def test_layers_that_get_no_image_of_a_block_are_refitted(reestimate, data):
    images = data.calibration.images.clone()
    images[:, 0, 0, 0] = 0.0
    images[40:44, 0, 0, 0] = 2.0
    network = settled(Routed(), images)
    graph, cut, pruned = built(network, replace(data, calibration=replace(data.calibration, images=images)))
    before = likeness(outputs(pruned, images, 64), outputs(network, images, 64))
    refit = SequentialRefit(network, images, held_out=0.2, norms=graph.norm_after)
    assert refit.way == "recorded calls"
    assert refit(pruned, cut, reestimate_norms=reestimate) == 3
    assert likeness(outputs(pruned, images, 64), outputs(network, images, 64)) > before


def test_a_norm_that_runs_several_times_gets_the_mean_statistics_of_its_calls(data):
    network = settled(Recurrent(), data.calibration.images)
    _, cut, pruned = built(network, data)
    seen = []
    pruned.again[1].register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    before = pruned.again[1].running_mean.clone()
    SequentialRefit(network, data.calibration.images)(pruned, cut)
    assert not torch.equal(pruned.again[1].running_mean, before)
    seen.clear()
    pruned(data.calibration.images)
    means = torch.stack([inputs.mean((0, 2, 3)) for inputs in seen])
    assert len(means) == 3
    assert torch.allclose(pruned.again[1].running_mean, means.mean(0), atol=0.1)


def test_a_network_that_takes_another_way_when_pruned_is_refitted_by_recorded_calls(data):
    """A number of the network's own width is part of the trace, and differs in the pruned network."""

    class ByWidth(ChunkLoop):
        def features(self, x):
            x = self.middle(self.stem(x))
            return self.last(x / self.middle[0].out_channels)

    network = settled(ByWidth(), data.calibration.images)
    graph, cut, pruned = built(network, data)
    refit = SequentialRefit(network, data.calibration.images, norms=graph.norm_after)
    assert refit.way == "traced"
    assert refit(pruned, cut) == 3
    assert refit.way == "recorded calls"
    assert "computes something else" in refit.why_recorded


def test_where_neither_way_works_both_reasons_are_given(data):
    class Small(ChunkLoop):
        def forward(self, x):
            if len(x) > 2 and bool(x.sum() != 0):
                raise ValueError("more than two images")
            return super().forward(x)

    network = randomised(Small())
    with pytest.raises(AmcError, match=r"Small cannot be traced.*recorded either: more than two images"):
        SequentialRefit(network, data.calibration.images)
