"""Every channel order from the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from amc.importance.names import ORDERS
from tests.experiments.helpers import TINY, amc, done, read_json, read_lines, refused

UNIFORM = (*TINY, "agent=uniform", "run_dir=run")


@pytest.fixture(scope="module")
def trained(trained_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's network, trained; the folder that all orders work in."""
    return shutil.copytree(trained_once, tmp_path_factory.mktemp("orders") / "cwd")


@pytest.mark.slow
def test_every_order_searches_and_prunes_and_keeps_its_own_channels(trained: Path) -> None:
    found = {}
    for order in ORDERS:
        done(*UNIFORM, f"compressor.order={order}", "stages=[search,prune]", cwd=trained)
        (found[order],) = read_lines(trained / "run/search.jsonl")
        assert 0 < found[order]["macs_ratio"] <= 0.5
        pruned = read_json(trained / "run/stages/prune.json")
        assert pruned["macs"] == found[order]["macs"]
        assert pruned["sliced_equals_cut"]
    assert found["taylor"]["widths"] == found["l1"]["widths"]
    assert found["taylor"]["agreement"] != found["l1"]["agreement"]


def test_the_greedy_guide_does_not_go_with_taylor(trained: Path) -> None:
    outcome = amc(*TINY, "run_dir=other", "compressor.order=taylor", "stages=[search]", cwd=trained)
    refused(outcome, "'taylor'", "order=obs", "agent.guide=uniform")


def test_an_unknown_order_is_refused(trained: Path) -> None:
    outcome = amc(*UNIFORM, "compressor.order=tailor", "stages=[search]", cwd=trained)
    refused(outcome, "'tailor'", ", ".join(ORDERS))
