import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amc.cutting.exactness import InexactError, _exclusion, check_exactness, prove
from amc.cutting.slicing import SlicePlan
from amc.errors import NotPrunableError
from amc.graph.groups import exclude_groups
from amc.graph.trace import trace
from amc.models import mobilenet_v2, plain20, resnet20
from tests.experiments.helpers import composed
from tests.networks import (
    PRUNABLE,
    SHAPE,
    Chain,
    Headed,
    Heads,
    Residual,
    SecretScale,
    SecretSoftmax,
    conv_bn,
)


class TwoSecrets(Headed):
    """Two groups that cannot be cut between groups that can."""

    def __init__(self):
        super().__init__(10)
        self.stem, self.inner, self.wide, self.last = (
            conv_bn(3, 8),
            conv_bn(8, 6),
            conv_bn(6, 9),
            conv_bn(9, 10),
        )
        self.scale = torch.arange(1.0, 9.0).view(1, 8, 1, 1)

    def features(self, x):
        x = self.wide(self.inner(self.stem(x) * self.scale))
        return self.last(x.softmax(1))


class Stateful(Chain):
    """Has a state that is no tensor."""

    def get_extra_state(self):
        return {"calls": 3}

    def set_extra_state(self, state):
        pass


class LeavesOut(Chain):
    """Its state dict lacks the first layer."""

    def state_dict(self, *args, **options):
        found = super().state_dict(*args, **options)
        del found["first.0.weight"]
        return found


class Offset(nn.BatchNorm2d):
    """Batch norm with a constant a channel that neither is stored nor known to torch-pruning."""

    def __init__(self, channels):
        super().__init__(channels)
        self.register_buffer("offset", torch.arange(float(channels)).view(-1, 1, 1), persistent=False)

    def forward(self, x):
        return super().forward(x) + self.offset


class WithOffset(Chain):
    def __init__(self):
        super().__init__()
        self.first[1] = Offset(8)


class Gated(Headed):
    """One channel, known by its number, scales the others."""

    def __init__(self, number):
        super().__init__(8)
        self.number = number
        self.stem, self.body, self.last = conv_bn(3, 8), conv_bn(8, 16), conv_bn(16, 8)

    def features(self, x):
        x = self.body(self.stem(x))
        return self.last(x * x.select(1, self.number).sigmoid().unsqueeze(1))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("number", [0, -1])
def test_a_channel_that_is_read_by_its_number_is_found_whatever_is_drawn(number, seed):
    model = Gated(number)
    found = prove(model, trace(model, torch.zeros(1, *SHAPE)), seed=seed)
    assert found.left_whole == ("body.0",)
    assert found.graph.group_names == ("stem.0", "last.0")


class Quiet(Chain):
    """Keeps its batch norms as they are, and forgets to return itself."""

    def train(self, mode=True):
        super().train(mode)
        self.first[1].eval()


class Indexed(Chain):
    def __init__(self):
        super().__init__()
        self.order = nn.Parameter(torch.arange(12).flip(0), requires_grad=False)
        self.phases = nn.Parameter(torch.randn(3, 12, 7, dtype=torch.cfloat))

    def features(self, x):
        x = torch.fft.irfft2(torch.fft.rfft2(x) * self.phases, s=x.shape[-2:])
        return super().features(x.index_select(2, self.order))


class CountsImages(Chain):
    """Counts the images that it has seen, in evaluation mode, too; nothing depends on their number."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def features(self, x):
        self.seen += len(x)
        return super().features(x)


@pytest.mark.parametrize("make", [Quiet, Indexed, CountsImages])
def test_odd_networks_are_proved(make):
    model = make()
    graph = trace(model, torch.zeros(1, *SHAPE))
    assert prove(model, graph).graph.group_names == ("first.0", "second")


def test_squeeze_without_an_axis_is_named():
    class Squeezed(Chain):
        def forward(self, x):
            return self.head(F.adaptive_avg_pool2d(self.features(x), 1).squeeze())

    with pytest.raises(NotPrunableError, match="not for one: squeeze\\(\\) without an axis"):
        trace(Squeezed(), torch.zeros(1, *SHAPE))


def test_a_name_with_a_number_is_shown_as_a_shell_and_hydra_take_it():
    assert _exclusion(["a", "b"]) == "compressor.exclude=[a,b]"
    assert _exclusion(["a#1", "b"]) == "\"compressor.exclude=['a#1','b']\""
    assert composed("compressor.exclude=['a#1','b']").compressor.exclude == ["a#1", "b"]


def proof(model, **options):
    graph = trace(model.eval(), torch.zeros(1, *SHAPE))
    return check_exactness(model, graph, SlicePlan(graph, model), **options)


@pytest.mark.parametrize("make", [*PRUNABLE, Heads])
def test_small_networks_are_exact(make):
    assert proof(make(), samples=3) < 1e-12


@pytest.mark.parametrize("make", [resnet20, plain20, pytest.param(mobilenet_v2, marks=pytest.mark.slow)])
def test_zoo_is_exact(make):
    model = make()
    graph = trace(model, torch.zeros(1, 3, 32, 32))
    assert check_exactness(model, graph, SlicePlan(graph, model), samples=1) < 1e-10


@pytest.mark.parametrize("make", [SecretScale, SecretSoftmax])
def test_channels_mixed_behind_the_graphs_back_are_found(make):
    with pytest.raises(InexactError, match=r"cannot be pruned exactly: in group 'stem\.0'") as caught:
        proof(make())
    assert "\n" not in str(caught.value)


def test_all_groups_to_blame_are_named_with_the_way_out():
    model = TwoSecrets()
    graph = trace(model, torch.zeros(1, *SHAPE))
    with pytest.raises(
        InexactError, match=r"compressor\.exclude=\[stem\.0,wide\.0\] leaves that out"
    ) as caught:
        check_exactness(model, graph, SlicePlan(graph, model))
    fewer = exclude_groups(graph, caught.value.groups)
    assert fewer.group_names == ("inner.0", "last.0")
    assert check_exactness(model, fewer, SlicePlan(fewer, model)) < 1e-12


@pytest.mark.parametrize("silent", ["same.1", "same.2"], ids=["weights", "norm"])
def test_a_branch_that_is_silent_at_first_is_proved_all_the_same(silent):
    """Many networks start with the last layer of a branch at zero: no cut in it would change anything."""

    class Secret(Residual):
        def __init__(self):
            super().__init__()
            self.scale = torch.arange(1.0, 7.0).view(1, 6, 1, 1)
            nn.init.zeros_(self.get_submodule(silent).weight)

        def features(self, x):
            x = self.stem(x)
            x = torch.relu(x + self.same[2](self.same[1](self.same[0](x) * self.scale)))
            return torch.relu(self.down(x) + self.shortcut(x))

    with pytest.raises(InexactError, match=r"in group 'same\.0\.0'"):
        proof(Secret())


def test_the_proof_leaves_the_network_alone():
    model = Residual().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    proof(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Stateful, "it fails: _extra_state of the state dict is of type dict, expected a tensor"),
        (LeavesOut, r"its state dict leaves out first\.0\.weight \(1 in all\); likely cause: a hook"),
        (WithOffset, "as torch-pruning cuts it, it fails: RuntimeError"),
    ],
)
def test_a_state_that_is_not_cut_or_stored_is_found(make, message):
    with pytest.raises(InexactError, match=message) as caught:
        proof(make())
    assert "\n" not in str(caught.value)
