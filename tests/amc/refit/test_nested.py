import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amc.errors import AmcError
from amc.graph.trace import trace
from amc.refit.lookup import RefitCache
from amc.refit.moments import Moments, collect_moments, refit_layers
from amc.refit.nested import Refit, expand_columns, has_intercept, refit
from tests.networks import ConvHead, Dense, Flattened, Residual

EVERYWHERE = 10**6

LAYERS = {
    "3x3": nn.Conv2d(6, 5, 3, padding=1),
    "1x1": nn.Conv2d(6, 5, 1, bias=False),
    "stride, dilation, reflection": nn.Conv2d(
        6, 5, (3, 2), stride=(2, 1), dilation=(1, 2), padding=(1, 2), padding_mode="reflect"
    ),
    "linear": nn.Linear(6, 5),
}


def correlated(layer, count, seed):
    """Inputs whose 6 channels are mixtures of 4 signals, plus noise and an offset."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    size = () if isinstance(layer, nn.Linear) else (7, 8)
    signals = torch.randn(count, 4, *size, generator=generator)
    noise = torch.randn(count, 6, *size, generator=generator)
    return torch.einsum("cs,ns...->nc...", mixing, signals) + 0.2 * noise + 0.5


def rows(layer, inputs):
    """All patches that `layer` reads, float64, through PyTorch's own unfold."""
    if isinstance(layer, nn.Linear):
        return inputs.double()
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    unfolded = F.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)
    return unfolded.transpose(1, 2).flatten(0, 1).double()


def flat(layer):
    return layer.weight.detach().flatten(1)


def moments_of(layer, inputs, positions=EVERYWHERE, **options):
    return collect_moments(nn.Sequential(layer), ["0"], inputs, positions_per_image=positions, **options)["0"]


def columns_of(layer, channels=(0, 1, 3, 5)):
    return expand_columns(torch.tensor(channels), flat(layer)[0].numel() // 6)


def test_moments_of_a_network_under_autocast_are_those_of_its_inputs_in_float32():
    class Halved(nn.Sequential):
        def forward(self, x):
            with torch.autocast(x.device.type, dtype=torch.bfloat16):
                return super().forward(x)

    torch.manual_seed(0)
    inputs = correlated(LAYERS["3x3"], 4, seed=1).bfloat16().float()  # what the second layer reads
    network = Halved(nn.ReLU(), nn.Conv2d(6, 5, 1))
    found = collect_moments(network, ["1"], inputs.clone(), positions_per_image=EVERYWHERE)["1"].gram
    expected = collect_moments(nn.Sequential(*network), ["1"], inputs, positions_per_image=EVERYWHERE)[
        "1"
    ].gram
    assert torch.equal(found, expected)


@pytest.fixture(params=LAYERS)
def layer(request):
    torch.manual_seed(0)
    LAYERS[request.param].reset_parameters()
    return LAYERS[request.param]


def test_moments_are_those_of_the_raw_features(layer):
    inputs = correlated(layer, 20, 1)
    features = rows(layer, inputs)
    extended = torch.cat([features, torch.ones(len(features), 1)], 1)
    moments = moments_of(layer, inputs, batch_size=7)
    assert moments.rows == len(features)
    expected = extended.T @ extended / len(features)
    torch.testing.assert_close(moments.gram, expected, rtol=0, atol=1e-6 * expected.max().item())


@pytest.mark.parametrize("intercept", [True, False])
def test_refit_equals_lstsq_on_the_raw_features(layer, intercept):
    inputs, columns = correlated(layer, 80, 1), columns_of(layer)
    features = rows(layer, inputs)
    target = features @ flat(layer).double().T
    kept = features[:, columns]
    if intercept:
        kept = torch.cat([kept, torch.ones(len(kept), 1)], 1)
    expected = torch.linalg.lstsq(kept, target).solution.T
    found = refit(moments_of(layer, inputs), flat(layer), columns, intercept=intercept, ridge=1e-12)
    torch.testing.assert_close(found.weight.double(), expected[:, : len(columns)], atol=1e-5, rtol=1e-4)
    shift = expected[:, -1] if intercept else torch.zeros(5, dtype=torch.float64)
    torch.testing.assert_close(found.shift.double(), shift, atol=1e-5, rtol=1e-4)


def test_refit_beats_no_refit_on_new_features(layer):
    columns = columns_of(layer)
    found = refit(moments_of(layer, correlated(layer, 80, 1)), flat(layer), columns, intercept=True)
    features = rows(layer, correlated(layer, 80, 2))
    target, kept = features @ flat(layer).double().T, features[:, columns]
    plain = kept @ flat(layer)[:, columns].double().T
    refitted = kept @ found.weight.double().T + found.shift
    assert (refitted - target).square().mean() < 0.5 * (plain - target).square().mean()


@pytest.mark.parametrize("intercept", [True, False])
def test_keeping_everything_changes_nothing(layer, intercept):
    columns = columns_of(layer, range(6))
    found = refit(moments_of(layer, correlated(layer, 80, 1)), flat(layer), columns, intercept=intercept)
    torch.testing.assert_close(found.weight, flat(layer), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.shift, torch.zeros(5), atol=1e-5, rtol=0)


def test_strong_ridge_keeps_the_dense_weights():
    layer = LAYERS["3x3"]
    columns = columns_of(layer)
    found = refit(
        moments_of(layer, correlated(layer, 9, 1)), flat(layer), columns, intercept=False, ridge=1e9
    )
    torch.testing.assert_close(found.weight, flat(layer)[:, columns])


def test_dead_inputs_do_not_break_the_solution():
    """Channel 0 is always zero, and without a ridge the system is singular."""
    layer, inputs = LAYERS["linear"], correlated(LAYERS["linear"], 50, 1)
    inputs[:, 0] = 0
    columns = torch.tensor([0, 1, 2, 3, 4])
    found = refit(moments_of(layer, inputs), flat(layer), columns, intercept=True, ridge=0.0)
    target = inputs.double() @ flat(layer).double().T
    kept = torch.cat([inputs[:, columns].double(), torch.ones(50, 1)], 1)
    best = kept @ torch.linalg.lstsq(kept, target, driver="gelsd").solution
    ours = inputs[:, columns].double() @ found.weight.double().T + found.shift
    torch.testing.assert_close(ours, best, atol=1e-4, rtol=1e-4)


def test_columns_of_channels():
    assert expand_columns(torch.tensor([0, 2]), 3).tolist() == [0, 1, 2, 6, 7, 8]


def test_sampled_positions_follow_the_seed():
    layer = LAYERS["3x3"]
    inputs = correlated(layer, 12, 1)
    first, again, other = (moments_of(layer, inputs, 4, seed=seed) for seed in (0, 0, 1))
    assert first.rows == 12 * 4
    assert torch.equal(first.gram, again.gram)
    assert not torch.equal(first.gram, other.gram)


def test_linear_layer_on_tokens():
    layer, tokens = LAYERS["linear"], torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
    features = tokens.flatten(0, 1).double()
    moments = moments_of(layer, tokens)
    assert moments.rows == 15
    torch.testing.assert_close(moments.gram[:6, :6], features.T @ features / 15)


def test_collecting_leaves_the_network_untouched():
    model, seen = ConvHead().train(), []
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    collect_moments(model, ["logits"], torch.randn(5, 3, 12, 12), batch_size=2, progress=seen.append)
    assert seen == [2, 2, 1]
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_features_that_are_not_finite_name_the_layer():
    model = ConvHead()
    model.stem[0].weight.data[0] = float("nan")
    with pytest.raises(AmcError, match="input of layer 'logits' is not finite"):
        collect_moments(model, ["logits"], torch.randn(2, 3, 12, 12))
    images = torch.randn(5, 3, 12, 12)
    images[4] = float("inf")
    with pytest.raises(AmcError, match=r"not finite on .*: 1 of 5 images hold NaN or infinity, .* index 4$"):
        collect_moments(ConvHead(), ["logits"], images)


def test_a_layer_that_no_image_reaches_is_named():
    model = ConvHead()
    model.idle = nn.Linear(2, 2)
    with pytest.raises(AmcError, match="layer 'idle' gets no input from the calibration images"):
        collect_moments(model, ["logits", "idle"], torch.randn(2, 3, 12, 12))


def test_layers_to_refit_and_where_a_shift_can_go(example):
    def facts(model):
        graph, modules = trace(model, example), dict(model.named_modules())
        return {name: has_intercept(graph, modules, name) for name in refit_layers(graph)}

    assert facts(Flattened()) == {"body.1.0": True, "hidden": True, "head": True}
    assert list(facts(Residual())) == ["same.0.0", "same.1", "down.0.0", "down.1", "shortcut.0", "head"]
    model = Dense()
    model.second = nn.Conv2d(10, 8, 3, padding=1, bias=False)
    assert facts(model) == {"first.0": True, "second": False, "head": True}


class Solver:
    """Makes refits of 40 bytes, counts, and watches which are still held."""

    def __init__(self):
        self.calls, self.made = [], []

    def __call__(self, layer, channels):
        self.calls.append((layer, tuple(channels.tolist())))
        found = Refit(torch.full((1, 9), float(channels.sum())), torch.zeros(1))
        self.made.append(weakref.ref(found))
        return found

    @property
    def held(self):
        return sum(found().nbytes for found in self.made if found() is not None)


def test_cache_solves_once():
    solve = Solver()
    cache = RefitCache(solve, 1000)
    first = cache("a", torch.tensor([0, 1]))
    assert cache("a", torch.tensor([0, 1])) is first
    cache("b", torch.tensor([0, 1]))
    cache("a", torch.tensor([0, 2]))
    assert solve.calls == [("a", (0, 1)), ("b", (0, 1)), ("a", (0, 2))]


def test_cache_stays_under_its_bound_and_drops_the_least_recently_used():
    solve = Solver()
    cache = RefitCache(solve, limit_bytes=100)  # room for two
    for channel in (0, 1, 0, 2):
        cache("a", torch.tensor([channel]))
        assert solve.held <= 100
    assert len(solve.calls) == 3
    assert cache("a", torch.tensor([0])).weight[0, 0] == 0
    assert len(solve.calls) == 3  # 0 was used after 1, so 1 went
    assert cache("a", torch.tensor([1])).weight[0, 0] == 1
    assert len(solve.calls) == 4
    assert solve.held == 80


def test_refit_of_constant_moments_by_hand():
    """Two equal inputs: keeping one doubles its weight."""
    gram = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    found = refit(
        Moments(gram, 10), torch.tensor([[3.0, 4.0]]), torch.tensor([0]), intercept=True, ridge=1e-12
    )
    torch.testing.assert_close(found.weight, torch.tensor([[7.0]]))
    torch.testing.assert_close(found.shift, torch.tensor([0.0]))
