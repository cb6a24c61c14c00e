"""Error curves are scaled to what pruning a group really does to the outputs."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amc.candidate.error_curves import SHARES, ErrorCurves, measured_curves, measured_widths
from amc.candidate.evaluator import channel_evaluator
from amc.candidate.settings import CandidateSettings
from amc.data import LabelledImages
from amc.errors import AmcError
from amc.graph.trace import trace
from amc.scoring.run import logits
from tests.networks import CLASSES, Summed, randomised

CURVE = (math.inf, *(float(10 - width) for width in range(1, 11)))


def test_a_curve_is_scaled_to_the_measured_errors():
    met = []

    def error_of(widths):
        met.append(widths)
        return 2 * CURVE[widths[0]] if widths[0] < 10 else CURVE[widths[1]] * (4 if widths[1] == 3 else 1)

    found = measured_curves({"a": CURVE, "b": CURVE}, (10, 10), error_of)
    assert met == [(3, 10), (7, 10), (10, 3), (10, 7)]
    assert found["a"][1:] == pytest.approx([2 * error for error in CURVE[1:]])
    assert found["a"][0] == math.inf
    # The factor runs from 4 at width 3 to 1 at width 7, evenly in its logarithm.
    assert [found["b"][w] / CURVE[w] for w in (1, 3, 5, 7, 9)] == pytest.approx([4, 4, 2, 1, 1])


def test_curves_never_rise_with_more_channels():
    found = measured_curves({"a": CURVE}, (10,), lambda widths: {3: 0.1, 7: 50.0}[widths[0]])["a"]
    assert all(fewer >= more for fewer, more in itertools.pairwise(found))
    assert found[3] == pytest.approx(50.0)  # no less than with 7 channels
    assert found[10] == 0


def test_small_groups_have_fewer_widths_to_measure():
    assert measured_widths(1) == ()
    assert measured_widths(2) == (1,)
    assert measured_widths(100) == tuple(round(100 * share) for share in SHARES)
    assert measured_curves({"a": (math.inf, 0.0)}, (1,), lambda widths: 1.0) == {"a": (math.inf, 0.0)}


def test_a_network_that_breaks_is_named():
    with pytest.raises(AmcError, match="3 channels in group 'a'"):
        measured_curves({"a": CURVE}, (10,), lambda widths: math.nan)


def test_errors_that_the_estimate_does_not_see_count_as_they_are_measured():
    blind = (math.inf, *[0.0] * 10)
    found = measured_curves({"a": blind}, (10,), lambda widths: {3: 0.4, 7: 0.05}[widths[0]])["a"]
    assert [found[width] for width in (0, 3, 7, 10)] == pytest.approx([math.inf, 0.4, 0.05, 0.0])
    assert all(fewer > more for fewer, more in itertools.pairwise(found))
    half = (*CURVE[:5], *[0.0] * 6)  # one of the two widths is seen
    found = measured_curves({"a": half}, (10,), lambda widths: {3: 14.0, 7: 0.05}[widths[0]])["a"]
    assert [found[width] for width in (1, 3, 7, 10)] == pytest.approx([18.0, 14.0, 0.05, 0.0])
    # what rounding explains is no error
    assert measured_curves({"a": blind}, (10,), lambda widths: 1e-9)["a"] == blind


def test_channels_that_no_layer_reads_have_an_error_curve():
    network = randomised(Summed(), seed=3).eval()
    graph = trace(network, torch.zeros(1, 3, 12, 12))
    images = torch.randn(40, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    data = LabelledImages(images, torch.zeros(40, dtype=torch.long))
    found = {}
    for measured in (0, 40):
        evaluator = channel_evaluator(network, graph, data, data, CandidateSettings(measured_images=measured))
        found[measured] = ErrorCurves(evaluator)()["gate"]
    assert found[0][1:] == pytest.approx([4 / 9, 1 / 9, 0])
    widths = [2 if group.name == "gate" else group.width for group in graph.groups]
    assert 1e-6 < found[40][2] == pytest.approx(-evaluator.evaluate(widths).likeness, rel=1e-3)


class Averaged(nn.Module):
    """The last layer's errors are alike all over a map, and no average evens them out."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.second = nn.Conv2d(12, 12, 3, padding=1)
        self.third = nn.Conv2d(12, 12, 1)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, images):
        x = torch.relu(self.second(torch.relu(self.first(images))))
        return self.head(torch.relu(self.third(x)).mean((2, 3)))


def test_measured_curves_are_nearer_to_real_errors_than_estimated_ones():
    network = randomised(Averaged(), seed=3).eval()
    graph = trace(network, torch.zeros(1, 3, 12, 12))
    generator = torch.Generator().manual_seed(0)
    images = F.interpolate(torch.randn(160, 3, 1, 1, generator=generator), (12, 12))
    images = images + 0.1 * torch.randn(160, 3, 12, 12, generator=generator)
    data = LabelledImages(images, torch.zeros(160, dtype=torch.long))
    dense = logits(network, images, 64)
    off = {}
    for measured in (0, 64):
        evaluator = channel_evaluator(network, graph, data, data, CandidateSettings(measured_images=measured))
        curves, ratios = ErrorCurves(evaluator)(), []
        for place, group in enumerate(graph.groups):
            for width in (2, 5, 9, 11):
                widths = (*graph.dense_widths[:place], width, *graph.dense_widths[place + 1 :])
                moved = evaluator.outputs(widths) - dense
                real = float(moved.square().sum() / (dense - dense.mean(0)).square().sum())
                ratios.append(math.log(curves[group.name][width] / real))
        off[measured] = np.abs(ratios).mean()
    assert off[64] < 0.5 * off[0]


def test_a_negative_number_of_images_is_refused():
    with pytest.raises(AmcError, match="measured_images is -1"):
        CandidateSettings(measured_images=-1)
    with pytest.raises(AmcError, match="measured_images is 1; expected 0 for none, or 2 or more"):
        CandidateSettings(measured_images=1)
