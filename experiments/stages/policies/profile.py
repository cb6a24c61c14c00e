"""Stage ``profile``: the latency of the network's layers on one runtime, and a model of the whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from amc.cost.closed_form import macs_cost
from amc.files import atomic_write_json
from amc.latency.prediction.cheap_widths import WIDTHS, typical_layer, width_costs
from amc.latency.prediction.layer_kinds import LayerKind, layer_kinds
from amc.latency.prediction.model import Accuracy, LatencyModel, LayerGrid, accuracy, layer_grids
from amc.latency.prediction.profile import (
    Progress,
    measure_layers,
    measure_networks,
    missing_points,
    random_networks,
    target_of,
)
from amc.latency.prediction.table import LatencyTable

if TYPE_CHECKING:
    from experiments.run.run import Run


def run(run: Run) -> dict[str, Any]:
    """Write ``latency_model.json``; layers measured before, for any network, are taken from the table.

    Random weights are enough: how long a layer takes does not depend on them.
    """
    config, backend = run.config.profile, run.problem.available_backend()
    target = target_of(backend, config.threads, config.batch)
    path = tables_folder(config.tables) / target.file_name
    table = LatencyTable.load(path) if path.exists() else LatencyTable(target)
    model, graph = run.problem.fresh_model().eval(), run.problem.graph
    kinds = layer_kinds(graph, model)
    grids = layer_grids(graph, kinds, run.space, config.points)
    missing = _points(table, grids)
    count = config.fit + config.held_out
    probe = len(WIDTHS) if config.widths else 0
    with tqdm(total=missing + count + probe, desc="profile", unit="network", disable=None) as bar:

        def progress(done: int, what: str) -> None:
            bar.set_postfix_str(what)
            bar.update(done)

        measure_layers(
            table, grids, backend, rounds=config.rounds, save=lambda t: t.save(path), progress=progress
        )
        unfitted = LatencyModel(graph, target, grids, [table.layers[kind] for kind in kinds])
        fitted, dense_ms, found = _fit(run, unfitted, progress)
        widths = _cheap_widths(run, typical_layer(graph, kinds)) if config.widths else {}
        progress(probe, "widths")
    atomic_write_json(run.problem.folder.latency_model, fitted.to_json())
    print(
        f"profile: {target.runtime} on {target.device}, dense {dense_ms:.3f} ms; predictions are off by "
        f"{found.median_error:.1%} (median) and {found.worst_error:.1%} (worst) on {found.networks} others"
    )
    return {
        "target": asdict(target),
        "table": path.name,
        "measured_layers": missing,
        "reused_layers": _points(LatencyTable(target), grids) - missing,
        "dense_ms": dense_ms,
        "predicted_dense_ms": fitted(graph.dense_widths),
        "minimum_latency_ratio": fitted(run.space.minimum) / fitted(graph.dense_widths),
        "factors": fitted.factors,
        **asdict(found),
        **widths,
    }


def _cheap_widths(run: Run, kind: LayerKind) -> dict[str, Any]:
    """Find the multiple of channels that ``budget.round_to`` should be on this runtime."""
    config = run.config.profile
    found = width_costs(
        kind,
        run.problem.available_backend(),
        batch=config.batch,
        threads=config.threads,
        rounds=config.rounds,
    )
    extra = ", ".join(f"{multiple}: {share:+.0%}" for multiple, share in found.extra.items())
    tqdm.write(
        f"profile: extra time of rounding widths up to multiples, {found.layer}: {extra}; "
        f"budget.round_to={found.cheap_multiple} costs next to nothing"
    )
    return {"widths": {**asdict(found), "cheap_multiple": found.cheap_multiple}}


def _points(table: LatencyTable, grids: Sequence[LayerGrid]) -> int:
    return sum(len(points) for _, points in missing_points(table, grids))


def _fit(run: Run, model: LatencyModel, progress: Progress) -> tuple[LatencyModel, float, Accuracy]:
    """Measure whole networks; fit to some and the dense one, and judge on the others."""
    config, graph = run.config.profile, run.problem.graph
    networks = random_networks(run.space, macs_cost(graph), config.fit + config.held_out, run.config.seed)
    dense_ms, ratios = measure_networks(
        run.problem.fresh_model().eval(),
        graph,
        networks,
        run.problem.available_backend(),
        batch=config.batch,
        threads=config.threads,
        rounds=config.rounds,
        progress=progress,
    )
    measured = [dense_ms * ratio for ratio in ratios]
    fit = config.fit
    fitted = model.fitted([graph.dense_widths, *networks[:fit]], [dense_ms, *measured[:fit]])
    return fitted, dense_ms, accuracy([fitted(widths) for widths in networks[fit:]], measured[fit:])


def tables_folder(configured: str | None) -> Path:
    """Return where tables are kept: as configured, else in the user's cache folder."""
    if configured is not None:
        return Path(configured)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "amc-search" / "latency"
