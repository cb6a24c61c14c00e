"""From a network and a runtime to a latency model, and from a predicted budget to one that is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from amc.budget.allocation import Errors, shrink_greedily
from amc.budget.budget import Budget
from amc.budget.widths import WidthSpace
from amc.cost.closed_form import macs_cost
from amc.errors import AmcError, FileError
from amc.graph.groups import Graph
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
from amc.latency.prediction.settings import ProfileSettings
from amc.latency.prediction.table import LatencyTable, Target
from amc.latency.remote.protocol import RemoteBackend
from amc.reading import set_aside
from amc.runtimes.protocol import Backend

if TYPE_CHECKING:
    from torch import nn

VERIFY_ROUNDS = 3
"""Rounds of a check, relative to those of a profile."""


@dataclass(frozen=True)
class Profile:
    """A latency model and how it was made.

    Attributes:
        model: predicts milliseconds at any widths.
        dense_ms: measured latency of the dense network.
        accuracy: of predictions on networks that the model was not fitted to.
        kinds: the kinds of the layers, in forward order.
        measured, reused: points of layers that were measured now, and that were in the table.
    """

    model: LatencyModel
    dense_ms: float
    accuracy: Accuracy
    kinds: Sequence[LayerKind]
    measured: int
    reused: int


@dataclass(frozen=True)
class Check:
    """One measurement of a pruned network beside the dense one.

    Attributes:
        widths: of the pruned network.
        dense_ms: milliseconds of the dense network.
        predicted, measured: latency of the pruned network relative to the dense one.
    """

    widths: tuple[int, ...]
    dense_ms: float
    predicted: float
    measured: float


def points_to_measure(table: LatencyTable, grids: Sequence[LayerGrid], rounds: int) -> int:
    """Return the number of points of layers that a table lacks, or has of fewer rounds."""
    return sum(len(points) for _, points in missing_points(table, grids, rounds))


def build_profile(
    network: nn.Module,
    graph: Graph,
    space: WidthSpace,
    backend: Backend | RemoteBackend,
    settings: ProfileSettings,
    *,
    tables: Path,
    seed: int,
    start: Callable[[int], Progress],
) -> Profile:
    """Measure layers and whole networks, and fit a latency model to them.

    Weights do not matter: the latency of a layer does not depend on them.

    Args:
        network: the dense network.
        tables: folder of measured layers, which other networks reuse.
        seed: of the networks that are drawn.
        start: called with the number of networks to be measured; returns what is called after every batch.

    Raises:
        AmcError: a layer does not convert, or the backend fails.
    """
    target = target_of(backend, settings.threads, settings.batch)
    path = tables / target.file_name
    table = _known(path, target)
    kinds = layer_kinds(graph, network)
    grids = layer_grids(graph, kinds, space, settings.points)
    missing = points_to_measure(table, grids, settings.rounds)
    progress = start(missing + settings.fit + settings.held_out)
    measure_layers(
        table, grids, backend, rounds=settings.rounds, save=lambda each: each.save(path), progress=progress
    )
    unfitted = LatencyModel(graph, target, grids, [table.layers[kind] for kind in kinds])
    networks = random_networks(space, macs_cost(graph), settings.fit + settings.held_out, seed)
    dense_ms, ratios = measure_networks(
        network,
        graph,
        networks,
        backend,
        batch=settings.batch,
        threads=settings.threads,
        rounds=settings.rounds,
        progress=progress,
    )
    measured = [dense_ms * ratio for ratio in ratios]
    fit = settings.fit
    model = unfitted.fitted([graph.dense_widths, *networks[:fit]], [dense_ms, *measured[:fit]])
    found = accuracy([model(widths) for widths in networks[fit:]], measured[fit:])
    reused = points_to_measure(LatencyTable(target), grids, settings.rounds) - missing
    return Profile(model, dense_ms, found, kinds, missing, reused)


def checked_widths(
    network: nn.Module,
    graph: Graph,
    space: WidthSpace,
    budget: Budget,
    widths: tuple[int, ...],
    backend: Backend | RemoteBackend,
    settings: ProfileSettings,
    errors: Callable[[], Errors],
) -> Iterator[Check]:
    """Measure a pruned network, and make it smaller until the budget holds; the last check holds.

    Args:
        network: the dense network, with any weights.
        budget: has a limit on the latency; ``widths`` meet its other limits.
        widths: of the network to begin with.
        errors: returns the groups' error curves, for the choice of what to make smaller.

    Raises:
        AmcError: there is no limit on the latency, or it does not hold after ``settings.repairs`` repairs.
    """
    limit = target = budget.of("latency")
    for tries in range(settings.repairs + 1):
        dense_ms, (measured,) = measure_networks(
            network,
            graph,
            [widths],
            backend,
            batch=settings.batch,
            threads=settings.threads,
            rounds=VERIFY_ROUNDS * settings.rounds,
            progress=lambda done, what: None,
        )
        yield Check(widths, dense_ms, target.share(widths), measured)
        if measured <= target.ratio or not budget.enforced:
            return
        if tries < settings.repairs:
            limit = replace(limit, ratio=min(limit.ratio, target.share(widths)) * target.ratio / measured)
            widths = shrink_greedily(space, [limit], widths, errors())
    raise AmcError(
        f"the strategy takes {measured:.4f} of the dense latency after {settings.repairs} repairs, over "
        f"latency_ratio={target.ratio:g}: is the machine noisy (more profile.rounds), or the budget near "
        "the latency of the smallest network"
    )


def _known(path: Path, target: Target) -> LatencyTable:
    """Return the measured layers of a target; a damaged table is set aside and measured again."""
    try:
        return LatencyTable.load(path) if path.exists() else LatencyTable(target)
    except FileError as error:
        set_aside(path, error)
        return LatencyTable(target)
