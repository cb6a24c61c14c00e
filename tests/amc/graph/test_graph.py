import copy
import re
from collections import OrderedDict

import pytest
import torch
from torch import nn

from amc.cost.closed_form import macs_cost
from amc.cutting.exactness import prove
from amc.cutting.slicing import SlicePlan, shaped, slice_model
from amc.errors import AmcError, NotPrunableError, SettingError
from amc.graph.groups import exclude_groups
from amc.graph.layers import noise_image
from amc.graph.trace import trace
from amc.refit.nested import has_intercept
from amc.strategy import GroupWidth, Strategy
from tests.networks import (
    CLASSES,
    SHAPE,
    Chain,
    ConcatThenAdd,
    ConvHead,
    Dense,
    Flattened,
    Grouped,
    Headed,
    Normalised,
    OneSlope,
    Residual,
    Separable,
    Shared,
    SqueezeExcite,
    conv_bn,
)


class Pair(Chain):
    def forward(self, x):
        return super().forward(x), x


class Mapped(Chain):
    def forward(self, x):
        return self.features(x)


class HookedByItself(Chain):
    """Reads what a hook has put aside; the hook of a copy puts it into the original."""

    def __init__(self):
        super().__init__()
        self.kept = []
        self.first.register_forward_hook(lambda _module, _inputs, output: self.kept.append(output))

    def forward(self, x):
        self.kept.clear()
        return super().forward(x) + self.kept[-1].mean()


class ReadsTheOriginal(Chain):
    """The hook of a copy puts aside what the original reads, and the copy reads what it was copied with."""

    def __init__(self):
        super().__init__()
        self.kept = {}
        self.first.register_forward_hook(lambda _module, _inputs, output: self.kept.update(maps=output))

    def forward(self, x):
        return super().forward(x) * self.kept["maps"].mean()


class Watched(ReadsTheOriginal):
    """Nothing reads what the hook has put aside."""

    def forward(self, x):
        return Chain.forward(self, x)


class KeepsItsOutput(Chain):
    """Its attribute depends on a parameter, and PyTorch copies no such tensor."""

    def __init__(self):
        super().__init__()
        self.last = self(torch.zeros(1, *SHAPE))


def groups_of(model, example):
    return {group.name: group for group in trace(model, example).groups}


def slots_of(group):
    return frozenset((slot.module, slot.axis) for slot in group.slots)


def resnet18():
    from torchvision.models import resnet18

    return resnet18().eval()


def test_groups_agree_with_torch_pruning_on_resnet18():
    import torch_pruning as tp

    model, example = resnet18(), torch.zeros(1, 3, 64, 64)
    ours = [(group.width, slots_of(group)) for group in trace(model, example).groups]
    dependencies = tp.DependencyGraph().build_dependency(model, example, verbose=False)
    names = {module: name for name, module in model.named_modules()}
    theirs = []
    for group in dependencies.get_all_groups(ignored_layers=[model.fc], root_module_types=[nn.Conv2d]):
        members = [item.dep for item in group if item.dep.target.module in names]
        axes = {
            (names[dep.target.module], "out" if dependencies.is_out_channel_pruning_fn(dep.handler) else "in")
            for dep in members
        }
        theirs.append((len(group[0].idxs), frozenset(axes)))
    assert len(ours) == 12
    assert set(ours) == set(theirs)
    assert len(ours) == len(theirs)


def test_sum_couples_its_producers_and_all_their_readers(example):
    groups = groups_of(Residual(), example)
    assert list(groups) == ["stem.0", "same.0.0", "down.0.0", "down.1"]  # in forward order
    stem = groups["stem.0"]
    assert stem.producers == ("stem.0", "same.1")
    assert stem.readers == ("same.0.0", "down.0.0", "shortcut.0")
    assert groups["down.1"].producers == ("down.1", "shortcut.0")


def test_depthwise_layers_follow(example):
    groups = groups_of(Separable(), example)
    assert list(groups) == ["stem.0", "body.1.0", "body.3.0"]
    assert groups["stem.0"].followers == ("body.0.0",)
    assert groups["stem.0"].readers == ("body.1.0",)
    assert trace(Separable(), example).layer("body.0.0").depthwise


def test_concatenation_places_channels_behind_each_other(example):
    first = groups_of(Dense(), example)["first.0"]
    places = {(slot.module, slot.axis): slot.positions for slot in first.slots}
    assert places["second", "in"] == ((6,), (7,), (8,), (9,))
    assert places["norm", "out"] == places["head", "in"] == places["second", "in"]


def test_sum_with_a_concatenation_is_split(example):
    groups = groups_of(ConcatThenAdd(), example)
    assert {name: group.width for name, group in groups.items()} == {"left.0#0": 4, "right.0#1": 6}
    assert groups["left.0#0"].producers == ("left.0", "whole.0")


def test_flattened_channels_own_several_columns(example):
    group = groups_of(Flattened(), example)["body.1.0"]
    (reader,) = [slot for slot in group.slots if slot.axis == "in"]
    assert reader.module == "hidden"
    assert reader.positions[1] == tuple(range(9, 18))


def test_gates_belong_to_the_channels_that_they_scale(example):
    stem = groups_of(SqueezeExcite(), example)["stem.0"]
    assert stem.producers == ("stem.0", "excite")
    assert stem.readers == ("squeeze", "last.0")


@pytest.mark.parametrize(
    ("make", "name", "reason"),
    [
        (Grouped, "grouped.0", r"grouped.0 is a grouped convolution \(groups=2\)"),
        (Grouped, "stem.0", "grouped convolution"),
        (ConvHead, "logits", "the network's output"),
        (Chain, "head", "the network's output"),
        (Normalised, "hidden", "norm normalises over the channels"),
        (Shared, "stem.0", "twice is called 2 times with shared weights"),
    ],
)
def test_unprunable_channels_are_listed_with_the_reason(make, name, reason, example):
    (item,) = [item for item in trace(make(), example).unprunable if item.name == name]
    assert re.search(reason, item.reason)


def test_norm_after_pairs_only_direct_neighbours(example):
    assert trace(Chain(), example).norm_after == {"first.0": "first.1"}
    assert "second" not in trace(Dense(), example).norm_after


def test_exclude_by_name_and_pattern(example):
    graph = trace(Residual(), example)
    fewer = exclude_groups(graph, ["down.*", "stem.0"])
    assert fewer.group_names == ("same.0.0",)
    assert {item.name for item in fewer.unprunable} == {"head", "down.0.0", "down.1", "stem.0"}
    assert macs_cost(fewer)((6,)) == macs_cost(graph)(graph.dense_widths)
    assert macs_cost(fewer)((2,)) == macs_cost(graph)((8, 2, 10, 12))
    assert exclude_groups(graph, []) is graph


def test_groups_that_a_layer_of_too_many_inputs_reads_are_left_whole():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(5 * 16, 6), nn.Linear(6, 2)
    )
    graph = trace(model, torch.zeros(1, 3, 8, 8))
    assert [graph.layer(name).inputs for name in ("0", "2", "4", "5")] == [27, 36, 80, 6]
    fewer = exclude_groups(graph, [], max_inputs=79)
    assert fewer.group_names == ("0", "4")
    assert fewer.unprunable[-1].name == "2"
    assert "80 inputs, and max_inputs is 79" in fewer.unprunable[-1].reason
    assert exclude_groups(graph, [], max_inputs=80) is graph
    with pytest.raises(AmcError, match="max_inputs leave no channel group"):
        exclude_groups(graph, [], max_inputs=5)


def test_coupled_groups_can_be_left_whole(example):
    fewer = exclude_groups(trace(Residual(), example), [], prune_coupled=False)
    assert fewer.group_names == ("same.0.0", "down.0.0")


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["down.2"], "^exclude has 'down.2', which matches no channel group; did you mean 'down.1'?"),
        (["zzzzz"], "matches no channel group; the first is 'stem.0'"),
        (["*"], "no channel group to prune"),
    ],
)
def test_bad_exclusions_are_refused(patterns, message, example):
    with pytest.raises(AmcError, match=message):
        exclude_groups(trace(Residual(), example), patterns)


@pytest.mark.parametrize("name", ["a[0]", "a[*", "a?0]"])
def test_brackets_in_the_name_of_a_group_stand_for_themselves(name, example):
    layers = {"a[0]": nn.Conv2d(3, 4, 1), "a[1": nn.Conv2d(4, 4, 1), "b": nn.Conv2d(4, 4, 1)}
    graph = trace(
        nn.Sequential(OrderedDict(layers | {"flat": nn.Flatten(), "head": nn.Linear(4 * 144, 2)})), example
    )
    wanted = [own for own in layers if own not in ("a[0]", *(["a[1"] if name == "a[*" else []))]
    assert list(exclude_groups(graph, name).group_names) == wanted


@pytest.mark.parametrize("shape", [(2, *SHAPE), SHAPE, (0, *SHAPE)])
def test_an_example_of_other_than_one_image_is_refused(shape):
    with pytest.raises(SettingError, match=r"example has shape \(.*\); expected one image \(1, C, H, W\)"):
        trace(Chain(), torch.zeros(shape))


def test_a_network_that_writes_into_its_input_leaves_the_example_as_it_was():
    class Normalising(Chain):
        def forward(self, x):
            return super().forward(x.sub_(0.5).div_(0.25))

    image = torch.ones(1, *SHAPE)
    trace(Normalising(), image)
    assert torch.equal(image, torch.ones(1, *SHAPE))


def test_a_synchronised_batch_norm_takes_up_shifts(example):
    model = nn.SyncBatchNorm.convert_sync_batchnorm(Chain())
    graph = trace(model, example)
    assert graph.norm_after == {"first.0": "first.1"}
    assert has_intercept(graph, dict(model.named_modules()), "first.0")


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        (Flattened(), 20, r"Flattened fails on an image of shape \(3, 20, 20\): .*image size"),
        (nn.Sequential(nn.Flatten(), nn.Linear(432, CLASSES)), 12, "no prunable layers: .*network's output"),
        (nn.Flatten(), 12, "no prunable layers: it has no Conv2d or Linear layer"),
        (HookedByItself(), 12, "a copy of HookedByItself .* does not work: IndexError: .*hook"),
        (ReadsTheOriginal(), 12, "a copy of ReadsTheOriginal .* computes something else .*: a hook"),
        (KeepsItsOutput(), 12, r"a copy of KeepsItsOutput .* does not work: .*\.detach\(\)"),
    ],
    ids=["size", "nothing to prune", "no layer", "a hook", "a hook that is read", "a kept result"],
)
def test_unusable_networks_are_refused_in_one_line(model, size, message):
    with pytest.raises(AmcError, match=message) as caught:
        trace(model, noise_image(model, (3, size, size)))
    assert "\n" not in str(caught.value)


def test_a_hook_of_a_copy_leaves_nothing_with_gradients_in_the_network(example):
    model = Watched().eval()
    graph = prove(model, trace(model, example)).graph
    assert graph.group_names == ("first.0", "second")
    assert not model.kept["maps"].requires_grad
    strategy = Strategy(
        tuple(GroupWidth(n, w, w - 2) for n, w in (("first.0", 8), ("second", 12))), 1.0, 1.0, 0
    )
    assert shaped(model, SHAPE, strategy).second.out_channels == 10


def test_frozen_parameters_are_pruned_all_the_same(example):
    model, frozen = Residual(), Residual().requires_grad_(False)
    graph = trace(frozen, example)
    assert graph == trace(model, example)
    sliced = slice_model(frozen, SlicePlan(graph, frozen).cut((4, 3, 5, 6)))
    assert sliced.stem[0].weight.shape == (4, 3, 3, 3)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [12, 20])
def test_traced_network_is_left_untouched(training, size):
    """Also when tracing fails (20 pixels)."""
    model = Flattened().train(training)
    before = copy.deepcopy(model.state_dict())
    try:
        trace(model, torch.randn(1, 3, size, size))
    except AmcError:
        assert size == 20
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    for module in model.modules():
        assert module.training == training
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_a_part_in_eval_mode_stays_so(example):
    model = Chain().train()
    model.first[1].eval()
    trace(model, example)
    assert model.training
    assert not model.first[1].training


def test_layers_may_be_called_by_keyword(example):
    class Keyword(Chain):
        def features(self, x):
            return self.second(input=self.first(x))

    assert trace(Keyword(), example).group_names == ("first.0", "second")


def test_calls_at_several_sizes_are_counted(example):
    class Pyramid(Chain):
        def __init__(self):
            super().__init__()
            self.first, self.second = conv_bn(3, 8), nn.Conv2d(8, 8, 3, stride=2, padding=1)
            self.head, self.last = nn.Linear(8, CLASSES), conv_bn(8, 8)

        def features(self, x):
            return self.last(self.second(self.second(self.first(x))))

    reasons = [item.reason for item in trace(Pyramid(), example).unprunable]
    assert "second is called 2 times with shared weights" in reasons


def test_one_slope_for_all_channels_is_no_slot(example):
    for group in trace(OneSlope(), example).groups:
        assert "slope" not in {slot.module for slot in group.slots}


def test_layer_facts(example):
    layer = trace(Chain(), example).layer("second")
    assert (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride) == (8, 12, (3, 3), (2, 2))
    assert (layer.in_size, layer.out_size, layer.positions, layer.bias) == ((12, 12), (5, 5), 25, True)
    assert trace(Chain(), example).input_shape == SHAPE


class Tied(Headed):
    """Two convolutions with one weight, which read the same channels and are added."""

    def __init__(self) -> None:
        super().__init__(12)
        self.stem = conv_bn(3, 8)
        self.left, self.right = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.right.weight = self.left.weight

    def features(self, x):
        x = self.stem(x)
        return self.left(x) + self.right(x)


def test_layers_that_share_their_weights_are_left_whole():
    """Cut copies share nothing: the pruned network would have more parameters than the closed form counts."""
    model = Tied()
    model.right.weight = nn.Parameter(model.left.weight.detach().clone())
    assert len(trace(model, torch.zeros(1, *SHAPE)).groups) == 2
    with pytest.raises(NotPrunableError, match="left shares its weight with right"):
        trace(Tied(), torch.zeros(1, *SHAPE))
