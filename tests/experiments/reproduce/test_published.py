"""The strategies of AMC's authors, as published: our groups, and the multiply-adds that they report."""

from pathlib import Path

import pytest
import torch

from amc.cost.closed_form import macs_cost, params_cost
from amc.graph.trace import trace
from amc.models import ModelSpec, build
from amc.strategy import Strategy

FOLDER = Path(__file__).parents[3] / "experiments/strategies/published"
REPORTED_M_MACS = {
    "mobilenet_v1_macs50": 293.87,
    "mobilenet_v1_latency50": 273.98,
    "mobilenet_v2_macs70": 210.62,
}  # github.com/mit-han-lab/amc-models


def test_every_published_strategy_is_checked():
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(REPORTED_M_MACS)


@pytest.mark.parametrize("name", REPORTED_M_MACS)
def test_a_published_strategy_has_the_reported_multiply_adds(name):
    strategy = Strategy.load(FOLDER / f"{name}.json")
    shape = tuple(strategy.model["input_shape"])
    spec = ModelSpec(strategy.model["name"], strategy.model["num_classes"], shape)
    model = build(spec, trust_dotted_path=False)
    graph = trace(model, torch.zeros(1, *shape))
    widths = strategy.widths_for(graph.group_names, graph.dense_widths)
    assert round(macs_cost(graph)(widths) / 1e6, 2) == REPORTED_M_MACS[name]
    for ratio, cost in (
        (strategy.macs_ratio, macs_cost(graph)),
        (strategy.params_ratio, params_cost(graph, model)),
    ):
        assert ratio == cost(widths) / cost(graph.dense_widths)
