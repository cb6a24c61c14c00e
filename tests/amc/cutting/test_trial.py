import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amc.cost.counted import count_macs
from amc.cutting.exactness import InexactError, check_exactness, prove
from amc.cutting.slicing import SlicePlan
from amc.errors import AmcError, NotPrunableError
from amc.graph.trace import trace
from amc.scoring.run import copied, settle
from tests.networks import CLASSES, SHAPE, Chain, Headed, SecretScale, SecretSoftmax, conv_bn


class Deep(Headed):
    """Three blocks; `between` sees the maps of the second one."""

    def __init__(self):
        super().__init__(10)
        self.stem, self.inner, self.last = conv_bn(3, 8), conv_bn(8, 6), conv_bn(6, 10)

    def between(self, x):
        return x

    def features(self, x):
        return self.last(self.between(self.inner(self.stem(x))))


class Noise(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.3)


class NoisyModule(Deep):
    def __init__(self):
        super().__init__()
        self.noise = Noise()

    def between(self, x):
        return self.noise(x)


class NoisyForward(Deep):
    def between(self, x):
        return F.dropout2d(x, 0.3)


class PlainDraws(Deep):
    """Draws from Python and NumPy."""

    def between(self, x):
        return x * (1 + random.random() + np.random.random())


class Counting(Deep):
    calls = 0

    def between(self, x):
        self.calls += 1
        return x * self.calls


class Tied(Deep):
    """Two convolutions with one weight."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.other.weight = self.one.weight

    def between(self, x):
        return F.relu(self.other(F.relu(self.one(x))))


class Recurrent(Deep):
    """Columns of a map as a sequence."""

    def __init__(self, layer):
        super().__init__()
        self.rnn = layer(10, 10) if issubclass(layer, nn.RNNCellBase) else layer(10, 10, batch_first=True)

    def forward(self, x):
        columns = self.features(x).mean(2).transpose(1, 2)
        if isinstance(self.rnn, nn.RNNBase):
            return self.head(self.rnn(columns)[0][:, -1])
        state = None
        for index in range(columns.shape[1]):
            state = self.rnn(columns[:, index], state)
        return self.head(state if isinstance(state, torch.Tensor) else state[0])


class Extra(nn.Module):
    """A table of one row a channel."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("table", torch.rand(channels, 2))

    def forward(self, x):
        return x * self.table[:, 0].view(-1, 1, 1) + self.table[:, 1].view(-1, 1, 1)


class Tabled(Deep):
    def __init__(self):
        super().__init__()
        self.inner[1] = Extra(6)


class Reordered(Deep):
    """Channels in an order of fixed numbers, beside a parameter of as many numbers that nothing uses."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.ones(6))

    def between(self, x):
        return x[:, torch.arange(5, -1, -1)]


class Projected(Deep):
    """A projection that is neither a parameter nor a buffer."""

    def __init__(self):
        super().__init__()
        self.projection = torch.randn(10, 10)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)) @ self.projection.to(x))


class Permuted(Deep):
    """A permutation in a list."""

    def __init__(self):
        super().__init__()
        self.order = random.sample(range(CLASSES), CLASSES)

    def forward(self, x):
        return super().forward(x)[:, self.order]


class Constant(Deep):
    """A tensor outside of the state dict that is the same in every build."""

    def __init__(self):
        super().__init__()
        self.grid = torch.linspace(-1, 1, CLASSES)

    def forward(self, x):
        return super().forward(x) + self.grid


class Averaging(Deep):
    """Keeps an average of what it saw in training in a plain attribute."""

    def __init__(self):
        super().__init__()
        self.seen = torch.zeros(1)

    def forward(self, x):
        found = super().forward(x)
        if self.training:
            self.seen = self.seen + found.detach().abs().mean()
        return found + self.seen


class Auxiliary(Deep):
    """A branch on the maps of the second block that runs in training mode only."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Conv2d(6, CLASSES, 1)

    def forward(self, x):
        maps = self.inner(self.stem(x))
        found = self.head(self.last(maps).mean((2, 3)))
        return found + self.branch(maps).mean((2, 3)) if self.training else found


class Routed(Deep):
    """A branch that no image of the dense network takes."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Conv2d(6, 6, 1)

    def between(self, x):
        full = x.shape[1] == self.branch.in_channels
        return x if full or self.training else self.branch(x)


class Pairs(Deep):
    """Returns a tuple in training mode."""

    def forward(self, x):
        found = super().forward(x)
        return (found, found) if self.training else found


class Scalars(Deep):
    """Parameters without an axis."""

    def __init__(self):
        super().__init__()
        self.scales = nn.ParameterList(nn.Parameter(torch.tensor(1.0)) for _ in range(2))

    def between(self, x):
        return x * self.scales[0] + self.scales[1]


class Single(Deep):
    """Runs in float32 only."""

    def between(self, x):
        return F.conv2d(x.float(), torch.eye(6).view(6, 6, 1, 1))


class Lazy(Headed):
    def __init__(self):
        super().__init__(10)
        self.body = nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.LazyConv2d(10, 3))

    def features(self, x):
        return self.body(x)


def weight_normed():
    model = Deep()
    nn.utils.weight_norm(model.last[0])
    return model


def proved(make, *, anew=True):
    """Prove a network that is built again with other draws."""
    builds = iter(range(100))

    def build():
        seed = next(builds)
        torch.manual_seed(seed)
        random.seed(seed)
        return make()

    model = build()
    graph = trace(model, torch.zeros(1, *SHAPE))
    state = torch.random.get_rng_state(), random.getstate()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = prove(model, graph, rebuild=build if anew else None)
    assert torch.equal(torch.random.get_rng_state(), state[0]) or anew  # `build` seeds the generator
    assert anew or random.getstate() == state[1]
    assert model.training
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    return found


def reasons(found):
    return {item.name: item.reason for item in found.graph.unprunable if item.name in found.left_whole}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("make", [Chain, Constant, Scalars, Lazy, weight_normed, Single])
def test_a_sound_network_is_left_as_it_is(make):
    found = proved(make)
    assert set(found.left_whole) <= ({"inner.0"} if make is Single else set())
    assert found.untrainable is None
    assert found.difference < (1e-4 if make is Single else 1e-9)
    proved(make, anew=False)


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (NoisyModule, r"random numbers are drawn by noise \(Noise\)"),
        (NoisyForward, "random numbers are drawn in the forward method of NoisyForward"),
        (PlainDraws, "random numbers are drawn"),
        (Counting, "a state is kept from one forward pass to the next"),
    ],
)
def test_outputs_that_are_not_repeatable_are_refused_with_the_cause(make, cause):
    with pytest.raises(NotPrunableError, match=f"not deterministic in evaluation mode, .*{cause}") as caught:
        proved(make)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "whole"),
    [
        (SecretSoftmax, {"stem.0": "mixes these channels in a way"}),
        (Tabled, {"inner.0": "inner.1 (Extra) holds table for these channels, which cannot be cut: R"}),
        (
            Reordered,
            {"inner.0": "forward method of Reordered fails without some of these channels: IndexError"},
        ),
        (Auxiliary, {"inner.0": "branch (Conv2d) reads these channels in training mode only"}),
        (Routed, {"inner.0": "branch (Conv2d) reads these channels for some images only"}),
    ],
)
def test_faulty_groups_are_left_whole_with_their_reasons(make, whole):
    found = proved(make)
    assert found.left_whole == tuple(whole)
    assert found.graph.groups
    for name, reason in reasons(found).items():
        assert whole[name] in reason
    assert check_exactness(make(), found.graph, SlicePlan(found.graph, make())) < 1e-12


def test_tied_layers_are_left_whole_before_any_trial():
    found = proved(Tied)
    assert found.left_whole == ()
    told = {item.name: item.reason for item in found.graph.unprunable}
    assert told["inner.0"] == told["one"] == "one shares its weight with other"
    assert told["other"] == "other shares its weight with one"


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell])
def test_channels_end_at_a_recurrent_layer(layer):
    found = proved(lambda: Recurrent(layer))
    assert found.graph.group_names == ("stem.0", "inner.0")
    whole = {item.name: item.reason for item in found.graph.unprunable}
    assert whole["last.0"] == f"rnn ({layer.__name__}) is not supported"


@pytest.mark.parametrize(("make", "named"), [(Projected, r"\(projection\)"), (Permuted, r"\(order\)")])
def test_state_outside_of_the_state_dict_is_found_in_a_new_build(make, named):
    message = (
        f"something else when it is built anew and loaded: .* outside of its parameters and buffers {named}"
    )
    with pytest.raises(InexactError, match=message) as caught:
        proved(make)
    assert caught.value.groups == ()
    proved(make, anew=False)


def test_state_that_only_training_leaves_is_found():
    with pytest.raises(InexactError, match=r"after a training step .* outside of .* buffers \(seen\)$"):
        proved(Averaging)


def test_a_network_that_cannot_be_trained_is_proved_with_the_reason():
    found = proved(Pairs)
    assert not found.left_whole
    assert found.untrainable.startswith("in training mode the network returned a tuple of 2, expected")


class Keeping(Deep):
    """Features in a list that grows and in a dictionary."""

    def __init__(self):
        super().__init__()
        self.kept, self.named = [], {}

    def between(self, x):
        self.kept.append(x)
        self.named["maps"] = x
        return x


def test_results_that_a_network_keeps_do_not_stop_its_copies(example):
    model = Keeping()
    count_macs(model, SHAPE)
    assert not model.named["maps"].requires_grad
    model(example)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copied(model)
    assert not any(each.requires_grad for each in copied(settle(model)).kept)


def test_nothing_left():
    class Whole(SecretScale):
        def features(self, x):
            return self.last(self.stem(x).softmax(1)).softmax(1)

    with pytest.raises(NotPrunableError, match=r"no channel group is left: stem\.0: .*; last\.0: ") as caught:
        proved(Whole)
    assert "\n" not in str(caught.value)


def test_a_network_that_fails_on_random_images_is_refused_in_a_line():
    class Picky(Deep):
        def forward(self, x):
            if x.any():
                raise ArithmeticError("too\nmuch")
            return super().forward(x)

    model = Picky()
    graph = trace(model, torch.zeros(1, *SHAPE))
    with pytest.raises(AmcError, match="fails on random images: ArithmeticError: too much"):
        check_exactness(model, graph, SlicePlan(graph, model))
