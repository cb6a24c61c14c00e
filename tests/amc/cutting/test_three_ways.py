import pytest
import torch

from amc.cutting.slicing import SlicePlan, slice_model
from amc.cutting.surgery import surgery
from amc.cutting.zeroing import zero_model
from amc.graph.trace import trace
from amc.models import resnet20
from tests.networks import (
    PRUNABLE,
    SHAPE,
    ConcatThenAdd,
    Dense,
    Residual,
    Separable,
    randomised,
)

NETWORKS = PRUNABLE


def prepare(make):
    model = randomised(make())
    graph = trace(model, torch.zeros(1, *SHAPE))
    return model, graph, SlicePlan(graph, model)


def images(count=4, dtype=torch.float32):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=dtype)


def difference(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("make", [*NETWORKS, resnet20])
def test_full_widths_give_the_same_bits(make):
    model, graph, plan = prepare(make)
    whole = slice_model(model, plan.cut(graph.dense_widths))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    assert torch.equal(whole(images()), model(images()))


@pytest.mark.parametrize("make", [Residual, Separable, Dense, ConcatThenAdd])
def test_zeroed_equals_sliced_equals_cut(make):
    model, graph, plan = prepare(make)
    model, batch = model.double(), images(dtype=torch.float64)
    every_other = plan.cut_to({group.name: torch.arange(1, group.width, 2) for group in graph.groups})
    zeroed, sliced, cut = (
        zero_model(model, graph, every_other),
        slice_model(model, every_other),
        surgery(model, graph, every_other),
    )
    assert sum(p.numel() for p in sliced.parameters()) < 0.6 * sum(p.numel() for p in model.parameters())
    for ours, theirs in zip(sliced.state_dict().values(), cut.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(sliced(batch), cut(batch))
    assert difference(sliced(batch), zeroed(batch)) < 1e-12
    assert difference(sliced(batch), model(batch)) > 1e-3  # the removed channels did matter


class Buffers(Residual):
    """Constants of one number a channel of the images and of the maps: one is saved, one is not."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.rand(1, 3, 1, 1), persistent=False)
        self.register_buffer("spread", torch.rand(3, 1, 1) + 1)

    def forward(self, x):
        return super().forward((x - self.mean) / self.spread)


@pytest.mark.parametrize("make", [*NETWORKS, Buffers])
def test_the_cut_network_saves_what_the_sliced_one_saves(make):
    model, graph, plan = prepare(make)
    cut = plan.cut([max(1, width // 2) for width in graph.dense_widths])
    found, expected = surgery(model, graph, cut), slice_model(model, cut)
    assert found.state_dict().keys() == expected.state_dict().keys()
    assert dict(found.named_buffers()).keys() == dict(expected.named_buffers()).keys()


def test_channels_that_are_zero_where_made_and_read_can_go():
    model, graph, plan = prepare(Separable)
    model, batch, dead = model.double(), images(dtype=torch.float64), [1, 6, 7]
    with torch.no_grad():
        for layer in (*model.body[1][:2], *model.body[2][:2]):  # the pointwise, then the depthwise layer
            layer.weight[dead] = 0
        model.body[3][0].weight[:, dead] = 0
    kept = dict(plan.cut(graph.dense_widths).kept)
    kept["body.1.0"] = torch.tensor([i for i in range(10) if i not in dead])
    pruned = slice_model(model, plan.cut_to(kept))
    assert pruned.body[2][0].weight.shape == (7, 1, 3, 3)
    assert pruned.body[2][0].groups == 7
    assert difference(pruned(batch), model(batch)) < 1e-12


def test_slicing_takes_the_right_rows_and_columns_and_leaves_the_original():
    model, graph, plan = prepare(Residual)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = dict(plan.cut(graph.dense_widths).kept)
    kept["down.0.0"] = torch.tensor([0, 4, 9])
    pruned = slice_model(model, plan.cut_to(kept))
    assert torch.equal(pruned.down[0][0].weight, model.down[0][0].weight[[0, 4, 9]])
    assert torch.equal(pruned.down[0][1].running_var, model.down[0][1].running_var[[0, 4, 9]])
    assert torch.equal(pruned.down[1].weight, model.down[1].weight[:, [0, 4, 9]])
    assert torch.equal(pruned.down[1].bias, model.down[1].bias)
    assert (pruned.down[0][0].out_channels, pruned.down[0][1].num_features, pruned.down[1].in_channels) == (
        3,
        3,
        3,
    )
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.fill_(7)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_kept_channels_are_nested_and_ascending():
    model, graph, _ = prepare(Separable)
    orders = {group.name: torch.randperm(group.width) for group in graph.groups}
    plan = SlicePlan(graph, model, orders)
    few, many = plan.cut((2, 3, 4)).kept, plan.cut((5, 6, 7)).kept
    for name, order in orders.items():
        assert few[name].tolist() == sorted(order[: len(few[name])].tolist())
        assert set(few[name].tolist()) < set(many[name].tolist())


def test_frozen_parameters_stay_frozen():
    model, graph, plan = prepare(Residual)
    model.stem.requires_grad_(False)
    model.same[2].weight.requires_grad_(False)
    frozen = [name for name, own in model.named_parameters() if not own.requires_grad]
    cut = plan.cut((4, 3, 5, 6))
    for pruned in (slice_model(model, cut), surgery(model, graph, cut)):
        assert [name for name, own in pruned.named_parameters() if not own.requires_grad] == frozen
