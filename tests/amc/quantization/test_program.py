from functools import partial

import pytest
import torch
from torch import nn

from amc.quantization.simulation import program_of
from tests.networks import (
    CLASSES,
    PRUNABLE,
    SHAPE,
    Chain,
    ChannelsLast,
    Chunked,
    ConcatThenAdd,
    FlattenedFromTheEnd,
    FrozenNorms,
    Gates,
    Residual,
    Shared,
    Standardised,
    Transposed,
    randomised,
)
from tests.params import slow, slow_but

IMAGES = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(3))


class TokenNorm(nn.Module):
    """A batch norm over the nine tokens of an image, behind a linear layer of some channels."""

    def __init__(self, channels):
        super().__init__()
        self.stem, self.mixed = nn.Conv2d(3, channels, 4, 4), nn.Linear(channels, channels)
        self.norm, self.head = nn.BatchNorm1d(9), nn.Linear(channels, CLASSES)

    def forward(self, images):
        tokens = self.stem(images).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.mixed(tokens)).mean(1))


COMMON = {Residual, Shared, ChannelsLast, FrozenNorms, Gates}
"""Networks of the kinds that users have most."""


@pytest.mark.parametrize(
    "make",
    [
        *slow_but(COMMON, PRUNABLE),
        pytest.param(partial(TokenNorm, 7), id="TokenNorm7"),
        slow(partial(TokenNorm, 9), id="TokenNorm9"),
    ],
)
def test_the_float_program_computes_what_the_network_computes(make):
    model = randomised(make())
    program, reason = program_of(model, SHAPE)
    assert program.sites
    assert (program.placement == "modules") == (make is FlattenedFromTheEnd) == bool(reason)
    with torch.inference_mode():
        expected = model(IMAGES.clone())
        torch.testing.assert_close(
            program.assembled({}, {}, ())(IMAGES.clone()), expected, rtol=1e-3, atol=1e-4
        )


def test_batch_norms_are_folded_and_activations_fused():
    program, _ = program_of(randomised(Residual()), SHAPE)
    kinds = [str(node.target) for node in program.model.graph.nodes]
    assert not any("norm" in kind for kind in kinds)
    names = [site.name for site in program.sites]
    assert names == ["stem.0", "same.0.0", "same.1", "down.0.0", "down.1", "shortcut.0", "head"]
    found = list(program.activations(set(names)))
    assert found[:2] == ["input", "stem.0"]
    assert sorted(found[2:]) == sorted([*names[1:6], "add", "add#2", "mean"])  # the logits stay float


@pytest.mark.parametrize(
    ("make", "together"),
    [
        (Chunked, {"stem", "hidden.0", "cat"}),
        slow(ConcatThenAdd, {"left.0", "right.0", "cat"}),
    ],
)
def test_maps_that_are_joined_or_split_share_one_grid(make, together):
    program, _ = program_of(randomised(make()), SHAPE)
    first = program.shared({site.name for site in program.sites})
    names = {name.removesuffix(".0") for name in together}
    found = [{name.removesuffix(".0") for name in first if first[name] == own} for own in set(first.values())]
    assert names in found
    assert sum(map(len, found)) == len(first)


def test_what_only_passes_to_an_output_stays_float():
    program, _ = program_of(randomised(Heads()), SHAPE)
    names = [site.name for site in program.sites]
    assert {"boxes", "scores"} <= set(names)
    assert not {"boxes", "scores"} & set(program.activations(set(names)))


class Heads(nn.Module):
    """Two layers whose maps are reordered and joined to one output, as in a detector."""

    def __init__(self):
        super().__init__()
        self.stem, self.boxes, self.scores = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, images):
        maps = self.stem(images).relu()
        found = [each(maps).permute(0, 2, 3, 1).flatten(1, 2) for each in (self.boxes, self.scores)]
        return torch.cat(found, 1)


def test_layers_that_stay_float_need_no_grid():
    program, _ = program_of(randomised(Chain()), SHAPE)
    assert program.activations(()) == {}
    assert list(program.activations({"head"})) == ["mean"]


@pytest.mark.slow
def test_what_cannot_be_quantized_is_named_with_its_reason():
    for make, name, reason in (
        (Transposed, "up.0", "only Conv2d and Linear"),
        (Standardised, "fourth", "its weight is not stored as it is used"),
    ):
        program, _ = program_of(randomised(make()), SHAPE)
        assert reason in {each.name: each.reason for each in program.left_float}[name]


class NamedLikeOperators(nn.Module):
    """Layers with the names of the input and of operators."""

    def __init__(self):
        super().__init__()
        self.input, self.add = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.mean = nn.Linear(8, CLASSES)

    def forward(self, images):
        maps = self.input(images).relu()
        return self.mean((maps + self.add(maps)).mean((2, 3)))


@pytest.mark.slow
def test_no_operator_takes_the_name_of_a_layer():
    program, _ = program_of(randomised(NamedLikeOperators()), SHAPE)
    assert program.images == "input#2"
    found = list(program.activations({site.name for site in program.sites}))
    assert found == ["input#2", "input", "add", "add#2", "mean#2"]
    assert program_of(randomised(Residual()), SHAPE)[0].images == "input"


def test_a_layer_that_runs_twice_is_two_layers():
    program, _ = program_of(randomised(Shared()), SHAPE)
    names = [site.name for site in program.sites]
    assert len(set(names)) == len(names)
    assert any(name.endswith("#2") for name in names)


class DecidesOnValues(nn.Module):
    """A forward pass that cannot be exported; it calls layers by keyword, and reads their attributes."""

    def __init__(self):
        super().__init__()
        self.first, self.head, self.tied = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), nn.Linear(5, 5)
        self.twin = nn.Linear(5, 5)
        self.twin.weight = self.tied.weight
        self.idle = nn.Linear(2, 2)

    def forward(self, x):
        x = self.first(input=x)
        if x.sum() > 0:
            x = x * 2
        x = x.mean((2, 3)).reshape(-1, self.head.in_features)
        return self.twin(self.tied(self.head(input=x)))


class CountsImages(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x):
        return self.head(x.mean((2, 3)).view(len(x), -1))


def test_a_network_that_takes_a_fixed_number_of_images_is_told_what_to_write():
    program, reason = program_of(randomised(CountsImages()), SHAPE)
    assert program.placement == "modules"
    assert reason.endswith("write x.shape[0] or x.size(0) in place of len(x) or int(x.shape[0])")


def test_a_network_that_cannot_be_exported_is_quantized_layer_by_layer():
    model = randomised(DecidesOnValues())
    program, reason = program_of(model, SHAPE)
    assert program.placement == "modules"
    assert reason
    assert [site.name for site in program.sites] == ["first", "head", "idle"]
    assert {each.name for each in program.left_float} == {"tied", "twin"}
    seen = {}
    program.see(IMAGES, {"first", "head", "idle"}, lambda name, values: seen.update({name: values.shape}))
    assert seen == {"first:input": (3, 3, 12, 12), "head:input": (3, 4)}
