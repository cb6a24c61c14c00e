import json
from dataclasses import replace

import pytest
import torch

import amc
from amc import AmcError, GroupWidth, Strategy
from amc.cutting.remembered import outputs_as_metadata
from amc.cutting.slicing import SlicePlan, slice_model
from amc.graph.trace import trace
from amc.models import ModelSpec, build
from amc.models.state_files import save_safetensors
from amc.quantization import storage
from amc.quantization.calibration import quantize
from amc.quantization.settings import QuantizeSettings
from tests.networks import CLASSES, SHAPE, Chain, randomised

ZOO = ModelSpec("resnet20", 10, SHAPE)
DOTTED = ModelSpec("tests.networks.Chain", CLASSES, SHAPE)


def save_run(folder, spec, *, whole=()):
    """Prune the network of `spec` at random, fill a run folder and return the pruned network."""
    model = randomised(build(spec, trust_dotted_path=True))
    graph = trace(model, torch.zeros(1, *spec.input_shape))
    kept = {group.name: torch.arange(1, group.width, 2) for group in graph.groups}
    kept |= {group.name: torch.arange(group.width) for group in graph.groups if group.name in whole}
    pruned = slice_model(model, SlicePlan(graph, model).cut_to(kept))
    widths = tuple(
        GroupWidth(g.name, g.width, len(kept[g.name])) for g in graph.groups if g.name not in whole
    )
    Strategy(widths, 0.5, 0.5, seed=0, model=spec.to_json()).save(folder / "strategy.json")
    save_safetensors(pruned.state_dict(), folder / "model.safetensors")
    return pruned


def assert_same(loaded, pruned):
    images = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert not loaded.training
    assert torch.equal(loaded(images), pruned(images))


def refused(match, *arguments, **options):
    with pytest.raises(AmcError, match=match) as caught:
        amc.load_pruned(*arguments, **options)
    assert "\n" not in str(caught.value)


@pytest.fixture
def run(tmp_path):
    """A run folder with a pruned `Chain`, which lies at a dotted path."""
    save_run(tmp_path, DOTTED)
    return tmp_path


@pytest.mark.parametrize("whole", [(), ("conv1", "layer2.1.conv1")], ids=["all groups", "some left whole"])
def test_round_trip_of_a_zoo_network(tmp_path, whole):
    pruned = save_run(tmp_path, ZOO, whole=whole)
    assert_same(amc.load_pruned(tmp_path), pruned)
    assert_same(amc.load_pruned(str(tmp_path)), pruned)


def test_other_weights_of_the_run(tmp_path):
    pruned = save_run(tmp_path, ZOO)
    (tmp_path / "model.safetensors").rename(tmp_path / "tuned.safetensors")
    assert_same(amc.load_pruned(tmp_path, weights="tuned.safetensors"), pruned)
    refused("model.safetensors: no such file", tmp_path)


def test_code_named_by_a_file_is_not_run_but_a_given_network_is_used(tmp_path):
    pruned = save_run(tmp_path, DOTTED)
    refused("path to Python code", tmp_path)
    dense = Chain()
    assert_same(amc.load_pruned(tmp_path, model=dense), pruned)
    assert dense.first[0].weight.shape[0] == 8


def test_strategy_of_another_network(tmp_path):
    save_run(tmp_path, ZOO)
    refused("is it for another network", tmp_path, model=Chain())


class Drawn(Chain):
    """Keeps random numbers outside of its parameters and buffers."""

    def __init__(self):
        super().__init__()
        self.drawn = torch.randn(CLASSES)

    def forward(self, x):
        return super().forward(x) * self.drawn


def test_a_network_that_computes_something_else_with_the_weights(tmp_path):
    pruned = save_run(tmp_path, ModelSpec("tests.amc.test_loading.Drawn", CLASSES, SHAPE))
    told = outputs_as_metadata(pruned.train().double(), SHAPE)
    weights = pruned.eval().float().state_dict()
    save_safetensors(weights, tmp_path / "model.safetensors", told)
    fresh = Drawn()
    refused("Drawn computes something else .* keeps state outside", tmp_path, model=fresh)
    fresh.drawn = pruned.drawn
    assert_same(amc.load_pruned(tmp_path, model=fresh), pruned)
    save_safetensors(weights, tmp_path / "model.safetensors", {"outputs": "[[1"})
    refused("cannot read the outputs", tmp_path, model=fresh)


def test_weights_of_a_network_that_gives_nan_tell_nothing():
    network = Chain()
    network.head.bias.data.fill_(torch.nan)
    assert outputs_as_metadata(network, SHAPE) == {}


def test_missing_folder(tmp_path):
    refused("no run folder at", tmp_path / "nowhere")


def test_missing_strategy(run):
    (run / "strategy.json").unlink()
    refused("cannot read", run, model=Chain())


@pytest.mark.parametrize(
    "model", [{}, {"name": "resnet20"}, {"name": 3, "num_classes": 5, "input_shape": [3, 12, 12]}]
)
def test_strategy_that_does_not_say_how_to_build_the_network(run, model):
    content = json.loads((run / "strategy.json").read_text())
    (run / "strategy.json").write_text(json.dumps({**content, "model": model}))
    refused("model", run)


def test_weights_of_another_width(run):
    """The strategy keeps four channels of the first convolution."""
    save_safetensors(Chain().state_dict(), run / "model.safetensors")
    refused(r"first.0.weight has shape \(8, 3, 3, 3\), expected \(4, 3, 3, 3\)", run, model=Chain())


def test_damaged_weights(run):
    content = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(content[: len(content) // 2])
    refused("expected a safetensors file", run, model=Chain())


def save_quantized_dense(folder):
    """Quantize a dense `Chain` in a run folder, as stage `quantize` does; return what it computes."""
    model = randomised(Chain())
    save_safetensors(model.state_dict(), folder / "dense.safetensors")
    images = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    made = quantize(model, images, QuantizeSettings("weight_only", rounding="nearest", sensitivity_images=0))
    about = replace(made.description, weights="dense.safetensors", model=DOTTED.to_json())
    storage.save(folder, about, made.tensors)
    return made.model


def test_a_quantized_dense_network_leaves_the_given_one_as_it_is(tmp_path):
    quantized, mine = save_quantized_dense(tmp_path), Chain().train()
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    assert_same(amc.load_pruned(tmp_path, model=mine, quantized=True), quantized)
    assert mine.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in mine.state_dict().items())


def test_a_quantized_dense_network_that_was_pruned_since_is_refused(tmp_path):
    save_quantized_dense(tmp_path)
    pruned = save_run(tmp_path, DOTTED)
    refused(
        r"quantization\.json is of the dense network, which was pruned", tmp_path, Chain(), quantized=True
    )
    assert_same(amc.load_pruned(tmp_path, Chain()), pruned)
