"""Networks of unusual forms that were once refused, miscounted or wrongly cut."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import DeformConv2d

from amc.candidate.folding import FoldedNetwork
from amc.cost.closed_form import macs_cost
from amc.cost.counted import count_macs
from amc.cutting.exactness import prove
from amc.cutting.slicing import shaped
from amc.cutting.trial import ready
from amc.errors import NotPrunableError
from amc.graph.layers import noise_image
from amc.graph.trace import trace
from amc.graph.unfolding import block_positions, block_rows, why_not_linear
from amc.quantization.calibration import quantize
from amc.quantization.settings import QuantizeSettings
from amc.strategy import GroupWidth, Strategy
from tests.networks import SHAPE, Chain, Headed, conv_bn, randomised


class ShortcutAroundTwo(Headed):
    """A sum whose second operand is a concatenation of two layers, each of which cuts a part of the first."""

    def __init__(self):
        super().__init__(6)
        self.stem, self.left, self.right = conv_bn(3, 6), conv_bn(6, 3), conv_bn(6, 3)

    def features(self, x):
        x = self.stem(x)
        return x + torch.cat([self.left(x), self.right(x)], 1)


class TwoNames(Headed):
    """A stem that is registered twice and called by its second name."""

    def __init__(self):
        super().__init__(6)
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.stem, self.last = nn.Sequential(*self.backbone), conv_bn(8, 6)

    def features(self, x):
        return self.last(self.stem(x))


class Colon(Headed):
    """Module names with a colon."""

    def __init__(self):
        super().__init__(6)
        self.parts = nn.ModuleDict({"a:1": conv_bn(3, 8), "b:out": conv_bn(8, 6)})

    def features(self, x):
        return self.parts["b:out"](self.parts["a:1"](x))


class Extracting(Headed):
    """A part that torchvision makes, with a graph for each mode; `copy.deepcopy` puts it in training mode."""

    def __init__(self):
        super().__init__(6)
        self.body = create_feature_extractor(Chain(), {"second": "maps"})
        self.last = conv_bn(12, 6)

    def features(self, x):
        return self.last(self.body(x)["maps"])


@pytest.mark.parametrize("kind", [ShortcutAroundTwo, TwoNames, Colon, Extracting])
def test_they_are_cut_exactly_and_counted_right(kind, example):
    model = randomised(kind())
    graph = trace(model, example)
    assert len(set(graph.group_names)) == len(graph.groups) > 0
    assert prove(model, graph).graph.groups
    assert macs_cost(graph)(graph.dense_widths) == count_macs(model, SHAPE)
    half = [width - 1 for width in graph.dense_widths]
    assert macs_cost(graph)(half) < count_macs(model, SHAPE)


def test_a_norm_of_two_names_is_folded_at_both(example):
    model = randomised(TwoNames())
    graph = trace(model, example)
    network = FoldedNetwork(model, graph, torch.device("cpu"), torch.float32)
    left = [
        name
        for name, own in network._network.named_modules(remove_duplicate=False)
        if "BatchNorm" in type(own).__name__
    ]
    assert left == []


class Branching(TwoNames):
    """The same, with a branch that depends on the values, so that modules are replaced one by one."""

    def features(self, x):
        return super().features(x if x.mean() < 1e9 else x + 1)


def test_a_layer_of_two_names_is_quantized_at_both():
    model, images = randomised(Branching()), torch.randn(8, *SHAPE)
    found = quantize(model, images, QuantizeSettings(method="dynamic_int8", sensitivity_images=0)).model
    assert found.stem[0] is found.backbone[0]
    assert type(found.stem[0]) is not nn.Conv2d


class Product(nn.Module):
    """One product of matrices after a linear layer."""

    def __init__(self, product):
        super().__init__()
        self.linear, self.product = nn.Linear(8, 6), product

    def forward(self, x):
        return self.product(self.linear(x.flatten(2).transpose(1, 2)[..., :8]))


class Masked(nn.MultiheadAttention):
    def __init__(self):
        super().__init__(6, 2, batch_first=True)

    def forward(self, x):
        return super().forward(x, x, x, attn_mask=torch.zeros(5, 5))[0]


def test_products_with_vectors_broadcasts_and_masks_are_counted_by_hand():
    plain = 5 * 8 * 6  # of 5 tokens
    assert count_macs(Product(lambda x: x @ torch.ones(6)), (8, 1, 5)) == plain + 5 * 6
    assert count_macs(Product(lambda x: x[:, None] @ torch.ones(2, 6, 3)), (8, 1, 5)) == plain + 2 * 5 * 6 * 3
    assert count_macs(Product(Masked()), (8, 1, 5)) == plain + 4 * 5 * 6 * 6 + 2 * 5 * 5 * 6


class Deformed(nn.Module):
    def __init__(self):
        super().__init__()
        self.offset, self.conv = nn.Conv2d(3, 18, 3, padding=1), DeformConv2d(3, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(x, self.offset(x)).mean((2, 3))


def test_deformable_convolutions_are_counted_as_others():
    pixels = SHAPE[1] * SHAPE[2]
    assert count_macs(Deformed(), SHAPE) == 9 * pixels * 3 * (18 + 4)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda x: x.tensors, "AttributeError: 'Tensor' object has no attribute 'tensors'$"),
        (lambda x: {"a": x}["b"], "KeyError: 'b'$"),
        (lambda x: nn.Conv2d(3, 6, 1)(x.half()), "casts to a type of its own: build it in float32$"),
        (lambda x: nn.Conv2d(4, 6, 1)(x), r"do the image size and the channels of the data fit the model\?$"),
    ],
)
def test_a_forward_pass_that_raises_anything_is_one_line(forward, message, example):
    class Wrong(Headed):
        def features(self, x):
            return forward(x)

    with pytest.raises(NotPrunableError, match=message):
        trace(Wrong(6), example)


def test_a_second_argument_and_an_image_of_another_type_are_told_as_such(example):
    class Two(Chain):
        def forward(self, x, time):
            return super().forward(x) * time

    with pytest.raises(NotPrunableError, match=r"missing .*'time'; it is given images alone: give what else"):
        trace(Two(), example)
    with pytest.raises(NotPrunableError, match=r"another type than the weights \(torch\.float64\)$"):
        trace(Chain(), example.double())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_a_part_that_is_compiled_by_torch_jit_is_named(example):
    scripted = torch.jit.script(nn.Conv2d(8, 12, 3))
    model = Chain().eval()
    model.second = scripted
    with pytest.raises(
        NotPrunableError,
        match=r"^second \(RecursiveScriptModule\) of Chain is compiled by torch\.jit, .* torch\.jit\.s",
    ):
        trace(model, example)
    with pytest.raises(NotPrunableError, match=r"^RecursiveScriptModule is compiled by torch\.jit"):
        trace(ready(scripted, SHAPE), example)


class Looking(Chain):
    """Crops images to what is not black in them and refuses those without any contrast."""

    def forward(self, x):
        x = x[..., : int(x.abs().sum((0, 1, 2)).nonzero().max()) + 1]
        if not torch.isfinite(x / x.std()).all():
            raise ValueError("NaN in the image")
        return super().forward(x)


def test_a_network_may_look_at_what_an_image_shows():
    """Also where it is traced again, without an image of the caller's."""
    model, blind = Looking().eval(), Chain().eval()
    state = torch.get_rng_state()
    graph = trace(model, noise_image(model, SHAPE))
    assert graph.group_names == trace(blind, noise_image(model, SHAPE)).group_names
    widths = tuple(GroupWidth(group.name, group.width, 2) for group in graph.groups)
    small = shaped(model, SHAPE, Strategy(widths, 0.5, 0.5, 0))
    assert small.first[0].out_channels == 2
    assert count_macs(model, SHAPE) == sum(layer.macs for layer in graph.layers)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_network_without_an_evaluation_mode_is_told_as_such(example):
    class OneMode(Chain):
        def train(self, mode=True):
            raise NotImplementedError("Calling eval() is not supported yet.")

    with pytest.raises(NotPrunableError, match=r"evaluation mode: NotImplementedError: .*torch\.export"):
        trace(OneMode(), example)


def test_nan_on_random_images_is_told_as_such(example):
    class Root(Headed):
        def __init__(self):
            super().__init__(6)
            self.stem, self.last = conv_bn(3, 8), conv_bn(8, 6)

        def features(self, x):
            return self.last(self.stem(F.relu(x) + torch.sqrt(x)))

    model = Root().eval()
    with pytest.raises(NotPrunableError, match="gives NaN or infinity on random images"):
        prove(model, trace(model, example.abs()))


def test_blocks_of_a_linear_layer_with_images_second_may_have_few_images():
    layer, generator = nn.Linear(4, 3), torch.Generator().manual_seed(0)
    blocks = [torch.randn(5, images, 4) for images in (32, 6)]
    chosen = block_positions(layer, blocks, 16, generator)
    rows = block_rows(layer, [layer(block) for block in blocks], chosen)
    assert rows.shape == (5 * (16 + 6), 3)


class GatedConv(nn.Conv2d):
    def forward(self, x, gate):
        return super().forward(x) * gate


class MaskedConv(nn.Conv2d):
    """A partial convolution, which returns its mask, too."""

    def forward(self, x):
        return super().forward(x), x[:, :1]


class OddCalls(Headed):
    """A plain layer, then one that ``call`` calls in its own way."""

    def __init__(self, odd, call):
        super().__init__(6)
        self.first, self.stem = conv_bn(3, 8), conv_bn(8, 8)
        self.odd, self.call, self.last = odd, call, conv_bn(8, 6)

    def features(self, x):
        return self.last(self.call(self.odd, self.stem(self.first(x))))


@pytest.mark.parametrize(
    ("odd", "call", "reason"),
    [
        (
            GatedConv(8, 8, 1),
            lambda odd, x: odd(x, x.sigmoid()),
            "odd (GatedConv) reads more than one tensor",
        ),
        (MaskedConv(8, 8, 1), lambda odd, x: odd(x)[0], "odd (MaskedConv) returns more than one tensor"),
        (
            nn.Conv2d(8, 8, 1),
            lambda odd, x: torch.stack([odd(own) for own in x]),
            "odd (Conv2d) reads its input without a batch axis",
        ),
        (
            nn.Linear(8, 8),
            lambda odd, x: x * odd(odd.weight[0])[:, None, None],
            "odd (Linear) reads its input without a batch axis",
        ),
    ],
    ids=["gate", "mask", "maps", "vector"],
)
def test_layers_that_are_called_in_their_own_way_stay_whole(odd, call, reason, example):
    graph = trace(randomised(OddCalls(odd, call)), example)
    assert reason in {item.reason for item in graph.unprunable}
    assert "first.0" in graph.group_names


def test_a_layer_that_fails_alone_is_no_product():
    found = why_not_linear(GatedConv(8, 8, 1), torch.Size((1, 8, 4, 4)))
    assert "no plain product" in found
