import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amc.cost.closed_form import macs_cost
from amc.cost.constant import with_other_macs
from amc.cost.counted import count_macs
from amc.cutting.exactness import prove
from amc.errors import AmcError
from amc.graph.groups import exclude_groups
from amc.graph.trace import trace
from tests.networks import CLASSES, SHAPE, Chain, Encoder, Headed, Heads, conv_bn


class Functional(Headed):
    """Uses the weight of its second convolution a second time, unseen: more channels, more products."""

    def __init__(self):
        super().__init__(10)
        self.stem, self.last = conv_bn(3, 8), nn.Conv2d(8, 10, 3, padding=1)

    def features(self, x):
        x = self.stem(x)
        with torch.no_grad():
            offset = F.conv2d(x, self.last.weight, padding=1).mean((1, 2, 3), keepdim=True)
        return self.last(x) + offset


def test_attention_is_counted_by_hand_and_as_a_constant(example):
    model = Encoder()
    graph = with_other_macs(trace(model, example), model)
    tokens, width = 9, 8
    projections = 4 * tokens * width * width
    products = 2 * tokens * tokens * width
    assert graph.other_macs == projections + products
    cost = macs_cost(graph)
    assert cost(graph.dense_widths) == count_macs(model, SHAPE)
    assert cost((4,)) == cost((16,)) - 12 * 2 * tokens * width


def test_a_network_without_other_products_keeps_its_graph(example):
    model = Chain()
    graph = trace(model, example)
    assert with_other_macs(graph, model) is graph


def test_groups_with_products_that_grow_with_the_widths_are_left_whole(example):
    model = nn.Sequential(conv_bn(3, 6), nn.Conv2d(6, 3, 1), Functional())
    found = with_other_macs(trace(model, example), model)
    assert found.group_names == ("0.0", "1")
    reasons = {item.name: item.reason for item in found.unprunable}
    assert "a budget would not see" in reasons["2.stem.0"]
    assert found.other_macs > 0


def test_a_network_without_any_other_group_is_refused(example):
    model = Functional()
    graph = trace(model, example)
    with pytest.raises(AmcError, match=r"widths of stem\.0, last, .*no channel group is left") as caught:
        with_other_macs(graph, model)
    assert "\n" not in str(caught.value)
    with pytest.raises(AmcError, match=r"widths of last, .*no channel group is left"):
        with_other_macs(exclude_groups(graph, ["stem.0"]), model)


class Auxiliary(Headed):
    """Computes a second output that it returns in training mode alone."""

    def __init__(self):
        super().__init__(8)
        self.stem, self.inner, self.last = conv_bn(3, 8), conv_bn(8, 6), conv_bn(6, 8)
        self.aux = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, CLASSES))

    def forward(self, x):
        x = self.stem(x)
        second = self.aux(x.mean((2, 3)))
        found = self.head(self.last(self.inner(x)).mean((2, 3)))
        return (found, second) if self.training else found


def test_layers_that_no_output_uses_cost_nothing_and_stay_whole(example):
    model = Auxiliary().eval()
    graph = trace(model, example)
    assert [layer.name for layer in graph.layers] == ["stem.0", "inner.0", "last.0", "head"]
    found = with_other_macs(prove(model, graph).graph, model)
    assert found.group_names == ("inner.0", "last.0")
    reasons = {item.name: item.reason for item in found.unprunable}
    assert {reasons[f"aux.{n}"] for n in range(2)} == {"its outputs are not used in evaluation mode"}
    assert "aux.0" in reasons["stem.0"]
    assert found.other_macs == 0


def test_padding_by_name_is_counted(example):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding="same"), nn.Conv2d(8, 8, 3, padding="valid", groups=4))
    assert count_macs(model, SHAPE) == 144 * 27 * 8 + 100 * 9 * 2 * 8


class Read(nn.Module):
    """Reads the columns of an image one after the other, by a recurrent layer or cell."""

    def __init__(self, reader):
        super().__init__()
        self.stem, self.body, self.reader = conv_bn(3, 6), conv_bn(6, 8), reader
        self.head = nn.Linear(10, CLASSES)

    def forward(self, x):
        columns = self.body(self.stem(x)).mean(2).transpose(1, 2)
        if isinstance(self.reader, nn.RNNCellBase):
            found = self.reader(columns[:, -1])
            return self.head(found[0] if isinstance(found, tuple) else found)
        return self.head(self.reader(columns)[0][:, -1])


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(
    ("reader", "macs"),
    [
        (nn.LSTM(8, 10, batch_first=True), 12 * 4 * 10 * (8 + 10)),
        (nn.GRU(8, 5, 2, batch_first=True, bidirectional=True), 12 * 2 * 3 * 5 * ((8 + 5) + (10 + 5))),
        (nn.LSTM(8, 16, proj_size=10, batch_first=True), 12 * (4 * 16 * (8 + 10) + 16 * 10)),
        (nn.RNN(8, 10, nonlinearity="relu", batch_first=True), 12 * 10 * (8 + 10)),
        (nn.GRUCell(8, 10), 3 * 10 * (8 + 10)),
        (nn.LSTMCell(8, 10), 4 * 10 * (8 + 10)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_recurrent_layers_are_counted_by_hand_and_as_a_constant(example, reader, macs):
    model = Read(reader).eval()
    graph = with_other_macs(trace(model, example), model)
    assert graph.other_macs == macs
    assert graph.group_names == ("stem.0",)
    assert macs_cost(graph)(graph.dense_widths) == count_macs(model, SHAPE)


class Product(Headed):
    def __init__(self, equation, *shape):
        super().__init__(16)
        self.stem, self.equation = conv_bn(3, 16), equation
        self.weight = nn.Parameter(torch.ones(shape))

    def features(self, x):
        return torch.einsum(self.equation, self.stem(x), self.weight)


@pytest.mark.parametrize(
    ("equation", "shape", "macs"),
    [
        ("bchw,oc->bohw", (16, 16), 16 * 16 * 12 * 12),
        ("b...w,wv->b...v", (12, 12), 16 * 12 * 12 * 12),
        ("bchw,c->bchw", (16,), 0),  # a scaling, as that of an attention to channels
    ],
)
def test_an_einsum_is_counted_exactly(equation, shape, macs):
    model = Product(equation, *shape)
    assert count_macs(model, SHAPE) == 3 * 9 * 16 * 12 * 12 + macs + 16 * CLASSES


def test_any_output_can_be_counted():
    assert count_macs(Heads(), SHAPE) == 144 * (27 * 8 + 72 * 12 + 24) + 12 * (CLASSES + 3)


class Unpooled(Headed):
    """Maps are put back where the largest of them lay."""

    def __init__(self):
        super().__init__(8)
        self.stem, self.inner = conv_bn(3, 8), conv_bn(8, 8)

    def features(self, x):
        x, places = F.max_pool2d(self.stem(x), 2, return_indices=True)
        return F.max_unpool2d(self.inner(x), places, 2)


def test_unpooling_is_counted_as_nothing():
    assert count_macs(Unpooled(), SHAPE) == 144 * 27 * 8 + 36 * 72 * 8 + 8 * CLASSES


def test_a_network_that_cannot_be_traced_is_refused(example):
    class Text(nn.Module):
        def forward(self, images):
            raise RuntimeError("no such thing\nmore")

    with pytest.raises(AmcError, match="Text cannot be counted: RuntimeError: no such thing"):
        count_macs(Text(), SHAPE)
    assert torch.backends.mha.get_fastpath_enabled()
