"""The refit in sequence is kept only where it brings the outputs nearer to the dense ones."""

import pytest
import torch
from torch import nn

from amc.candidate.builder import CandidateBuilder
from amc.candidate.pruning import Comparison, prune
from amc.candidate.settings import CandidateSettings, PruneSettings
from amc.cutting.slicing import slice_model
from amc.errors import SettingError
from amc.graph.trace import trace
from amc.models import resnet20
from amc.scoring.run import outputs
from amc.scoring.scores import likeness
from tests.networks import Residual, randomised

SEQUENTIAL = PruneSettings()


def built(network, data, **settings):
    graph = trace(network, torch.zeros(1, *data.input_shape))
    return CandidateBuilder(network, graph, data.calibration, CandidateSettings(**settings))


def narrow(builder):
    return [max(1, 3 * width // 4) for width in builder.dense_widths]


@pytest.mark.slow
def test_a_network_in_channels_last_is_cut_to_the_same_bits(data):
    torch.manual_seed(0)
    network = resnet20(num_classes=5).to(memory_format=torch.channels_last).eval()
    builder = built(network, data, refit=False, sequential_images=0)
    for whole in range(0, len(builder.dense_widths), 4):
        widths = [w if place == whole else w // 2 for place, w in enumerate(builder.dense_widths)]
        found = prune(builder, data.calibration.images, widths, PruneSettings(sequential=False))
        assert found.macs == builder.macs(widths)


class Reads(Residual):
    """Reads the scale of a batch norm, or what the convolution before it has computed."""

    def __init__(self, what):
        super().__init__()
        self.what = what

    def features(self, x):
        if self.what == "scale":
            return super().features(x * self.stem[1].weight.mean())
        before = self.stem[0](x).detach().mean((1, 2, 3), keepdim=True)
        return super().features(x + before)


@pytest.mark.parametrize("what", ["scale", "before"])
def test_batch_norms_that_the_forward_pass_goes_around_are_not_folded(what, data):
    torch.manual_seed(0)
    network = Reads(what).eval()
    with torch.no_grad():
        network.stem[1].running_var.fill_(9.0)
    builder = built(network, data, refit=False, sequential_images=0)
    found = prune(builder, data.calibration.images, narrow(builder), PruneSettings(sequential=False))
    assert found.folded_difference < 1e-6


def test_a_network_whose_outputs_are_all_zero_is_pruned(data):
    network = Residual()
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.zero_()
    builder = built(network, data, refit=False, sequential_images=0)
    found = prune(builder, data.calibration.images, narrow(builder), PruneSettings(sequential=False))
    assert found.folded_difference == 0


def test_the_better_network_is_kept(trained, data):
    builder = built(trained, data, reestimate_norms=False)
    pruned = prune(
        builder, data.calibration.images, narrow(builder), SEQUENTIAL, unseen=data.search_val.images
    )
    found = pruned.comparison
    assert found.kept
    assert found.likeness > found.likeness_before
    assert (found.way, found.images, pruned.refit) == ("traced", 100, "traced")
    images = data.search_val.images
    assert likeness(outputs(pruned.model, images, 64), outputs(trained, images, 64)) == pytest.approx(
        found.likeness
    )
    assert pruned.refitted_layers == 6


def test_a_worse_refit_is_left_out_and_both_figures_are_recorded(data):
    """The norms' statistics are not those of the images, so that new ones change the function."""
    network = randomised(Residual(), seed=1)
    builder = built(network, data, reestimate_norms=True)
    widths = narrow(builder)
    images = data.search_val.images
    pruned = prune(builder, data.calibration.images, widths, SEQUENTIAL, unseen=images)
    found = pruned.comparison
    assert not found.kept
    assert found.likeness < found.likeness_before
    assert pruned.refitted_layers == 0
    assert pruned.refit == "left out, traced was worse"
    figures = f"likeness {found.likeness:.4g}, before {found.likeness_before:.4g}"
    assert str(found) == f"refit in sequence left out: {figures}"
    looked_up = builder.pruned_model(builder.cut(widths)).state_dict()
    assert all(torch.equal(tensor, looked_up[name]) for name, tensor in pruned.model.state_dict().items())


@pytest.mark.parametrize(("held_out", "images"), [(0.25, 24), (0.0, 96)])
def test_without_other_images_the_held_out_ones_compare(held_out, images, trained, data):
    builder = built(trained, data)
    settings = PruneSettings(held_out=held_out)
    assert prune(builder, data.calibration.images, narrow(builder), settings).comparison.images == images


def test_without_a_refit_the_winner_keeps_the_weights_of_its_channels(trained, data):
    builder = built(trained, data, order="l1", refit=False)
    pruned = prune(builder, data.calibration.images, widths := narrow(builder), SEQUENTIAL)
    assert (pruned.refit, pruned.comparison, pruned.refitted_layers) == ("none", None, 0)
    sliced = slice_model(trained, builder.cut(widths), {}).state_dict()
    assert all(torch.equal(tensor, sliced[name]) for name, tensor in pruned.model.state_dict().items())
    with pytest.raises(SettingError, match=r"write compressor\.sequential_images=0, too"):
        CandidateSettings(refit=False, sequential_images=8)


def test_why_there_is_no_refit_is_noted(trained, data):
    class Picky(Residual):
        def forward(self, x):
            if len(x) == 32:
                raise ValueError("32 images are too many")
            return super().forward(x)

    network = Picky()
    network.load_state_dict(trained.state_dict())
    builder = built(network.eval(), data, batch_size=50)
    pruned = prune(builder, data.calibration.images, narrow(builder), SEQUENTIAL)
    assert pruned.comparison is None
    assert "32 images are too many" in pruned.note
    assert pruned.refit == f"impossible in sequence: {pruned.note}"


def test_a_refit_that_breaks_off_leaves_the_network_as_it_was(trained, data, monkeypatch):
    builder = built(trained, data)
    widths = narrow(builder)

    def broken(model, *args, **options):
        nn.init.zeros_(model.head.weight)
        raise RuntimeError("the solver broke")

    monkeypatch.setattr(builder, "refit_in_sequence", broken)
    pruned = prune(builder, data.calibration.images, widths, SEQUENTIAL)
    assert pruned.note == "Residual: the refit failed: the solver broke"
    looked_up = builder.pruned_model(builder.cut(widths)).state_dict()
    assert all(torch.equal(tensor, looked_up[name]) for name, tensor in pruned.model.state_dict().items())


@pytest.mark.parametrize(
    ("likeness", "before", "kept"),
    [(-0.1, -0.2, True), (-0.2, -0.1, False), (None, -0.1, False), (None, None, False), (-9.0, None, True)],
)
def test_what_is_kept(likeness, before, kept):
    found = Comparison(1, "traced", likeness, before, 1)
    assert found.kept == kept
    assert ("not finite" in str(found)) == (None in (likeness, before))
