"""From a network and a runtime to a latency model, and from a predicted budget to one that is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from amc.budget.allocation import Errors, shrink_greedily
from amc.budget.budget import Budget, Limit
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
from amc.seeds import draws_kept

if TYPE_CHECKING:
    from torch import nn

VERIFY_ROUNDS = 3
"""Rounds of a check, relative to those of a profile."""
CLOSE = 0.98
"""Share of the budget from which a repaired network is large enough."""


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
        holds: whether the measured latency is within the budget, or the budget is not enforced.
        device, version: of the device and its runtime, as in ``Target``.
    """

    widths: tuple[int, ...]
    dense_ms: float
    predicted: float
    measured: float
    holds: bool
    device: str
    version: str


def points_to_measure(table: LatencyTable, grids: Sequence[LayerGrid], rounds: int) -> int:
    """Return the number of points of layers that a table lacks, or has of fewer rounds."""
    return sum(len(points) for _, points in missing_points(table, grids, rounds))


@draws_kept()
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
    name: str | None = None,
) -> Profile:
    """Measure layers and whole networks, and fit a latency model to them.

    Weights do not matter: the latency of a layer does not depend on them. They are drawn; the global random
    states are left alone.

    Args:
        network: the dense network.
        tables: folder of measured layers, which other networks reuse.
        seed: of the networks that are drawn.
        start: called with the number of networks to be measured; returns what is called after every batch.
        name: what the user calls the runtime, see ``target_of``.

    Raises:
        AmcError: a layer does not convert, or the backend fails.
    """
    target = target_of(backend, settings.threads, settings.batch, name)
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
    times = measure_networks(
        network,
        graph,
        networks,
        backend,
        batch=settings.batch,
        threads=settings.threads,
        rounds=settings.rounds,
        progress=progress,
    )
    dense_ms, fit = times.dense_ms, settings.fit
    measured = [dense_ms * ratio for ratio in times.ratios]
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
    """Measure a pruned network, and make it smaller until the budget holds; ``kept`` chooses a check.

    A repair may overshoot. Those that are left after it look for a larger network between it and the last one
    that missed the budget.

    Args:
        network: the dense network, with any weights.
        budget: has a limit on the latency; ``widths`` meet its other limits.
        widths: of the network to begin with.
        errors: returns the groups' error curves, for the choice of what to make smaller.

    Raises:
        AmcError: there is no limit on the latency, or it does not hold after ``settings.repairs`` repairs.
    """
    target = budget.of("latency")
    check = partial(_checked, network, graph, target, budget.enforced, backend, settings)
    tries = [check(widths)]
    yield tries[-1]
    if tries[-1].holds:
        return
    limit, curves = target, errors()
    while not tries[-1].holds:
        last = tries[-1]
        limit = replace(limit, ratio=min(limit.ratio, last.predicted) * target.ratio / last.measured)
        smaller = shrink_greedily(space, [limit], last.widths, curves)
        if len(tries) > settings.repairs or smaller == last.widths:
            raise _missed(tries, target)
        tries.append(check(smaller))
        yield tries[-1]
    way = _way(space, target, tries[-2].widths, tries[-1].widths, curves)
    yield from _larger(way, target, tries[-1].measured, settings.repairs + 1 - len(tries), check)


def kept(checks: Sequence[Check]) -> Check:
    """Return the check with the largest measured latency of those that hold; one does."""
    return max((each for each in checks if each.holds), key=lambda each: each.measured)


def _checked(
    network: nn.Module,
    graph: Graph,
    target: Limit,
    enforced: bool,
    backend: Backend | RemoteBackend,
    settings: ProfileSettings,
    widths: tuple[int, ...],
) -> Check:
    """Measure the network of some widths beside the dense one."""
    times = measure_networks(
        network,
        graph,
        [widths],
        backend,
        batch=settings.batch,
        threads=settings.threads,
        rounds=VERIFY_ROUNDS * settings.rounds,
        progress=lambda done, what: None,
    )
    measured = times.ratios[0]
    holds = measured <= target.ratio or not enforced
    return Check(widths, times.dense_ms, target.share(widths), measured, holds, times.device, times.version)


def _missed(tries: Sequence[Check], target: Limit) -> AmcError:
    """Return the error of a budget that no repair has met; it tells what was measured."""
    told = ", then ".join(f"{each.measured:.4f}" for each in tries)
    return AmcError(
        f"the strategy takes {told} of the dense latency after {len(tries) - 1} repairs, over "
        f"latency_ratio={target.ratio:g}: is the machine noisy (more profile.rounds), or the budget near "
        "the latency of the smallest network"
    )


def _way(
    space: WidthSpace, target: Limit, start: tuple[int, ...], end: tuple[int, ...], errors: Errors
) -> list[tuple[int, ...]]:
    """Return the networks that were passed when ``start`` was shrunk to ``end``, both included."""
    found = [start]
    while target.share(found[-1]) > target.share(end):
        below = replace(target, ratio=target.share(found[-1]) * (1 - 1e-9))
        found.append(shrink_greedily(space, [below], found[-1], errors))
    return [*found[:-1], end]


def _larger(
    way: Sequence[tuple[int, ...]],
    target: Limit,
    best: float,
    repairs: int,
    check: Callable[[tuple[int, ...]], Check],
) -> Iterator[Check]:
    """Bisect by the predicted latency between the first network of a way, which fails, and the last.

    Args:
        way: networks of falling latency.
        target: the limit on the latency.
        best: measured latency of the last network, which holds.
        repairs: measurements that are left.
        check: measures a network.
    """
    low, high = 0, len(way) - 1
    while repairs and high - low > 1 and best < CLOSE * target.ratio:
        middle = (target.share(way[low]) + target.share(way[high])) / 2
        place = min(range(low + 1, high), key=lambda each: abs(target.share(way[each]) - middle))
        found = check(way[place])
        yield found
        repairs -= 1
        if found.holds:
            high, best = place, max(best, found.measured)
        else:
            low = place


def _known(path: Path, target: Target) -> LatencyTable:
    """Return the measured layers of a target; a damaged table is set aside and measured again."""
    try:
        return LatencyTable.load(path) if path.exists() else LatencyTable(target)
    except FileError as error:
        set_aside(path, error)
        return LatencyTable(target)
