from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from amc.candidate.evaluator import channel_evaluator
from amc.candidate.fingerprint import fingerprint
from amc.candidate.memo import Memo
from amc.candidate.settings import CandidateSettings
from amc.cutting.slicing import slice_model
from amc.errors import NotPrunableError
from amc.graph.groups import exclude_groups
from amc.graph.trace import trace
from amc.models import resnet20
from amc.scoring.run import logits
from amc.scoring.scores import cross_entropy, top1
from tests.networks import PRUNABLE, SHAPE, Chain, Heads, Residual, Separable, randomised


class Counting(Residual):
    """Counts the forward passes of all its copies."""

    calls: ClassVar[list[int]] = []

    def forward(self, x):
        self.calls.append(len(x))
        return super().forward(x)


def make(model, data, memo=None, **settings):
    graph = trace(model, torch.zeros(1, *SHAPE))
    settings = CandidateSettings(**{"order": "l1", "batch_size": 64, **settings})
    return channel_evaluator(model, graph, data.calibration, data.search_val, settings, memo=memo)


def halved(evaluator):
    return tuple((width + 1) // 2 for width in evaluator.builder.dense_widths)


def pruned_model(evaluator, widths):
    return evaluator.builder.pruned_model(evaluator.builder.cut(widths))


def outputs(model, data):
    return logits(model, data.search_val.images, 64)


def difference(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.fixture(scope="module")
def evaluator(trained, data):
    return make(trained, data)


@pytest.mark.parametrize("network", [*PRUNABLE, resnet20])
def test_candidate_computes_the_pruned_network(network, data):
    evaluator = make(randomised(network(), seed=3), data)
    for widths in (halved(evaluator), evaluator.builder.dense_widths):
        expected = outputs(pruned_model(evaluator, widths), data)
        assert difference(evaluator.outputs(widths), expected) < 1e-4


def test_candidates_do_not_depend_on_earlier_candidates(evaluator, data):
    wide, narrow = (8, 6, 10, 12), (3, 2, 4, 5)
    first = evaluator.outputs(narrow)
    evaluator.outputs(wide)
    assert torch.equal(evaluator.outputs(narrow), first)


def test_pruned_network_without_refit_is_the_sliced_one(trained, data):
    evaluator = make(trained, data, refit=False)
    widths = halved(evaluator)
    expected = slice_model(trained, evaluator.builder.cut(widths))
    for name, tensor in pruned_model(evaluator, widths).state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name])


def test_dense_widths_give_the_dense_network(evaluator, trained, data):
    expected = outputs(trained, data)
    dense = evaluator.evaluate(evaluator.builder.dense_widths)
    assert dense == evaluator.dense
    assert dense.top1 == top1(expected, data.search_val.labels)
    assert dense.top1 > 60  # of five classes
    assert dense.loss == pytest.approx(cross_entropy(expected, data.search_val.labels), rel=1e-5)
    assert dense.agreement == 0
    assert (dense.macs_ratio, dense.params_ratio) == (1, 1)


def test_evaluation_judges_the_pruned_network(evaluator, data):
    widths = halved(evaluator)
    found, pruned = evaluator.evaluate(widths), pruned_model(evaluator, widths)
    assert found.widths == widths
    assert found.loss == pytest.approx(cross_entropy(outputs(pruned, data), data.search_val.labels), rel=1e-5)
    assert found.params == sum(parameter.numel() for parameter in pruned.parameters())
    assert found.macs_ratio == found.macs / evaluator.dense.macs
    assert found.agreement < 0


class Needing(Residual):
    """Needs eight channels where it sees more than one image."""

    def features(self, x):
        if len(x) > 1 and len(self.stem[0].weight) < 8:
            raise ValueError("eight channels are needed")
        return super().features(x)


def test_a_candidate_that_fails_is_one_line(data):
    evaluator = make(Needing(), data, refit=False)
    narrow = [1] * len(evaluator.builder.dense_widths)
    with pytest.raises(
        NotPrunableError, match=r"a network of widths \[1, .* fails: ValueError: eight .*exclude"
    ):
        evaluator.evaluate(narrow)


def test_known_widths_cost_no_forward_pass(data):
    memo = Memo()
    evaluator = make(randomised(Counting()), data, memo)
    widths = halved(evaluator)
    first = evaluator.evaluate(widths)
    calls = len(Counting.calls)
    assert evaluator.evaluate(list(widths)) is first
    assert len(Counting.calls) == calls
    assert memo.get(widths) is first
    evaluator.evaluate((1, *widths[1:]))
    assert Counting.calls[calls:] == [64, 36]  # the 100 images once


@pytest.mark.parametrize("network", [Residual, Separable])
def test_refit_improves_agreement(network, trained, data):
    model = trained if network is Residual else randomised(network(), seed=1)
    with_refit, without = make(model, data), make(model, data, refit=False)
    widths = tuple(max(1, round(0.7 * width)) for width in with_refit.builder.dense_widths)
    assert with_refit.evaluate(widths).agreement > 0.5 * without.evaluate(widths).agreement
    assert without.evaluate(widths).agreement < -0.01  # there was something to repair


@pytest.mark.parametrize(
    "layers",
    [[nn.Conv2d(6, 4, 3)], [nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4)]],
    ids=["bias", "batch norm"],
)
def test_refit_keeps_the_mean_output(layers, data):
    """The intercept, in the bias or the batch norm, leaves no mean residual on the calibration images."""
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)]
    model = randomised(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), *layers, *head))
    evaluator = make(model, data, positions_per_image=10**6)
    pruned = pruned_model(evaluator, (3, 4))
    depth, images = 2 + len(layers), data.calibration.images
    found, expected = (network[:depth](images).mean((0, 2, 3)) for network in (pruned, model))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert not torch.equal(pruned[2].weight, model[2].weight[:, evaluator.builder.cut((3, 4)).kept["0"]])


def test_small_cache_recomputes_the_same(trained, data, evaluator):
    tiny = make(trained, data, cache_mib=0)
    for widths in [(8, 6, 5, 6), (4, 3, 10, 12), (8, 6, 5, 6)]:
        expected = evaluator.outputs(widths)
        assert torch.equal(tiny.outputs(widths), expected)


def test_the_dense_network_is_never_changed(data):
    model = randomised(Residual()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluator = make(model, data)
    evaluator.evaluate(halved(evaluator))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("refit", [True, False])
def test_training_a_pruned_network_changes_no_later_candidate(refit, trained, data):
    evaluator = make(trained, data, refit=refit)
    widths = halved(evaluator)
    before = outputs(pruned_model(evaluator, widths), data)
    with torch.no_grad():
        for parameter in pruned_model(evaluator, widths).parameters():
            parameter.add_(1.0)
    assert torch.equal(outputs(pruned_model(evaluator, widths), data), before)


def test_batch_norm_without_statistics(data):
    model = Chain()
    model.second = nn.Sequential(
        nn.Conv2d(8, 12, 3, bias=False), nn.BatchNorm2d(12, track_running_stats=False)
    )
    evaluator = make(randomised(model), data)
    widths = halved(evaluator)
    expected = outputs(pruned_model(evaluator, widths), data)
    assert difference(evaluator.outputs(widths), expected) < 1e-4


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_folding_all_kinds_of_batch_norm(affine, bias, data):
    model = Chain()
    model.second = nn.Sequential(nn.Conv2d(8, 12, 3, bias=bias), nn.BatchNorm2d(12, affine=affine))
    evaluator = make(randomised(model), data)
    widths = halved(evaluator)
    with evaluator.builder.network(widths) as network:
        assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    expected = outputs(pruned_model(evaluator, widths), data)
    assert difference(evaluator.outputs(widths), expected) < 1e-4


SETTINGS = CandidateSettings(order="l1")


@pytest.mark.parametrize(
    "change",
    [
        {"order": "l2"},
        {"refit": False},
        {"ridge": 1e-3},
        {"positions_per_image": 8},
        {"batch_size": 32},
    ],
    ids=lambda change: next(iter(change)),
)
def test_fingerprint_follows_every_setting_that_changes_results(trained, change):
    graph = trace(trained, torch.zeros(1, *SHAPE))
    changed = fingerprint(trained, graph, "data", replace(SETTINGS, **change))
    assert changed != fingerprint(trained, graph, "data", SETTINGS)


def test_fingerprint_follows_weights_groups_and_data_but_not_the_cache(trained):
    graph = trace(trained, torch.zeros(1, *SHAPE))
    base = fingerprint(trained, graph, "data", SETTINGS)
    assert fingerprint(trained, graph, "data", replace(SETTINGS, cache_mib=1)) == base
    assert fingerprint(trained, graph, "other data", SETTINGS) != base
    fewer = exclude_groups(graph, [graph.group_names[0]])
    assert fingerprint(trained, fewer, "data", SETTINGS) != base
    other = Residual()
    other.load_state_dict(trained.state_dict())
    assert fingerprint(other, graph, "data", SETTINGS) == base
    other.shortcut[1].running_var[3] += 1e-3
    assert fingerprint(other, graph, "data", SETTINGS) != base
    smooth = Residual()
    smooth.load_state_dict(trained.state_dict())
    name = next(name for name, module in smooth.named_modules() if isinstance(module, nn.ReLU))
    smooth.set_submodule(name, nn.SiLU())
    assert fingerprint(smooth, graph, "data", SETTINGS) != base


def test_fingerprint_follows_unsaved_buffers_and_what_a_network_is_built_from():
    network = Residual()
    graph = trace(network, torch.zeros(1, *SHAPE))
    found = {fingerprint(network, graph, "data", SETTINGS, *origin) for origin in ((), ("a",), ("b",))}
    for mean in (0.0, 0.5):
        network.register_buffer("mean", torch.full((1, 3, 1, 1), mean), persistent=False)
        found.add(fingerprint(network, graph, "data", SETTINGS))
    assert len(found) == 5


def test_candidates_refitted_in_sequence_agree_better(trained, data):
    looked_up, sequential = make(trained, data), make(trained, data, sequential_images=64)
    widths = halved(looked_up)
    assert sequential.evaluate(widths).agreement > looked_up.evaluate(widths).agreement
    assert sequential.dense == looked_up.dense


def test_a_looked_up_candidate_is_independent_of_a_sequential_refit(trained, data):
    graph = exclude_groups(trace(trained, torch.zeros(1, *SHAPE)), [], prune_coupled=False)

    def alone():
        settings = CandidateSettings(order="l1", batch_size=64, sequential_images=64)
        return channel_evaluator(trained, graph, data.calibration, data.search_val, settings)

    evaluator = alone()
    widths = halved(evaluator)
    evaluator.outputs(widths)  # has refitted the classifier too, which no pruned group feeds
    assert torch.equal(looked_up(evaluator, widths, data), looked_up(alone(), widths, data))


def looked_up(evaluator, widths, data):
    with evaluator.builder.looked_up(evaluator.builder.cut(widths)) as network:
        return outputs(network, data)


def test_a_network_is_lent_to_one_candidate_at_a_time(trained, data):
    evaluator = make(trained, data)
    widths = halved(evaluator)
    with (
        evaluator.builder.network(widths),
        pytest.raises(RuntimeError, match="lent to another"),
        evaluator.builder.network(widths),
    ):
        pass
    assert evaluator.outputs(widths).shape == (100, 5)


def test_networks_without_logits_are_judged_by_their_outputs(data):
    evaluator = make(randomised(Heads()), data)
    assert evaluator.dense.agreement == 0
    found = evaluator.evaluate([width // 2 for width in evaluator.builder.dense_widths])
    assert (found.top1, found.loss) == (None, None)
    bare = make(randomised(Heads()), data, refit=False).evaluate(found.widths)
    assert bare.agreement < found.agreement < 0


def test_a_depthwise_group_of_one_channel_leaves_others_as_they_were(data):
    torch.manual_seed(0)
    model = randomised(Separable())
    graph = trace(model, torch.zeros(1, *SHAPE))
    settings = replace(SETTINGS, precision="float32")
    images = data.calibration, data.search_val
    first, second = (channel_evaluator(model, graph, *images, settings) for _ in range(2))
    first.evaluate([1] * len(graph.group_names))
    widths = [max(1, width // 2) for width in graph.dense_widths]
    assert first.evaluate(widths).loss == second.evaluate(widths).loss
