"""Every channel order from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from amc.importance.orders import ORDERS
from tests.experiments.helpers import TINY, amc, done, read_json, read_lines, refused, workspace

UNIFORM = (*TINY, "agent=uniform", "run_dir=run")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's network, trained; the folder that all orders work in."""
    cwd = workspace(tmp_path_factory.mktemp("orders"))
    done(*UNIFORM, "stages=[train]", cwd=cwd)
    return cwd


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_searches_and_prunes(trained: Path, order: str) -> None:
    done(*UNIFORM, f"compressor.order={order}", "stages=[search,prune]", cwd=trained)
    run = trained / "run"
    (only,) = read_lines(run / "search.jsonl")
    assert 0 < only["macs_ratio"] <= 0.5
    pruned = read_json(run / "stages/prune.json")
    assert pruned["macs"] == only["macs"]
    assert pruned["sliced_equals_cut"]


def test_orders_keep_different_channels(trained: Path) -> None:
    found = {}
    for order in ("taylor", "l1"):
        done(*UNIFORM, f"compressor.order={order}", "stages=[search]", cwd=trained)
        (line,) = read_lines(trained / "run/search.jsonl")
        found[order] = line
    assert found["taylor"]["widths"] == found["l1"]["widths"]
    assert found["taylor"]["agreement"] != found["l1"]["agreement"]


def test_the_greedy_guide_does_not_go_with_taylor(trained: Path) -> None:
    outcome = amc(*TINY, "run_dir=other", "compressor.order=taylor", "stages=[search]", cwd=trained)
    refused(outcome, "'taylor'", "order=obs", "agent.guide=uniform")


def test_an_unknown_order_is_refused(trained: Path) -> None:
    outcome = amc(*UNIFORM, "compressor.order=tailor", "stages=[search]", cwd=trained)
    refused(outcome, "'tailor'", ", ".join(ORDERS))
