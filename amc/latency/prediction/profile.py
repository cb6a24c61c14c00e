"""The measurements of a latency model: layers at a grid of widths, and whole networks at random widths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
from torch import nn

from amc.budget.budget import Cost, make_budget
from amc.budget.widths import WidthSpace
from amc.cutting.slicing import SlicePlan, slice_model
from amc.graph.groups import Graph
from amc.latency.prediction.layer_kinds import LayerKind
from amc.latency.prediction.model import LayerGrid
from amc.latency.prediction.table import LatencyTable, Target
from amc.latency.remote.protocol import RemoteBackend, setup_of
from amc.latency.timing.measure import measure_models, time_models
from amc.runtimes.protocol import Backend, Shape
from amc.scoring.run import in_eval

T = TypeVar("T")
Progress = Callable[[int, str], None]
"""Called with the number of networks that were measured, and their kind."""

LAYERS_AT_ONCE = 32
"""Networks of a layer that are timed in the same rounds."""
NETWORKS_AT_ONCE = 8


@dataclass(frozen=True)
class NetworkTimes:
    """Whole networks, each timed in the same rounds as the dense one.

    Attributes:
        dense_ms: milliseconds of the dense network.
        ratios: latency of each network relative to the dense network of its rounds.
        device, version: of the device and its runtime, as in ``Target``.
    """

    dense_ms: float
    ratios: list[float]
    device: str
    version: str


def target_of(backend: Backend | RemoteBackend, threads: int, batch: int, name: str | None = None) -> Target:
    """Return the target of latencies measured with ``backend``; timing a small network shows the device.

    Args:
        backend: the runtime.
        threads: threads the runtime may use.
        batch: images per call.
        name: what the user calls the runtime; None for its own name. Two runtimes of the user's own may have
            one name, and differ by their dotted paths.

    Raises:
        AmcError: The backend fails.
    """
    probe = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    found = measure_models({"probe": probe}, (3, 8, 8), backend, batch=batch, threads=threads, rounds=1)
    return Target(
        found.device,
        name or backend.name,
        found.version,
        backend.precision,
        threads,
        batch,
        setup_of(backend),
    )


def missing_points(
    table: LatencyTable, grids: Sequence[LayerGrid], rounds: int
) -> list[tuple[LayerKind, list[tuple[int, int]]]]:
    """Return the (input, output) channels of ``grids`` that the table lacks, by kind of layer.

    A point that was measured with fewer than ``rounds`` samples is lacking, too.
    """
    wanted: dict[LayerKind, dict[tuple[int, int], None]] = {}
    for grid in grids:
        lacking = {p: None for p in grid.points if not table.knows(grid.kind, p, rounds)}
        wanted.setdefault(grid.kind, {}).update(lacking)
    return [(kind, list(points)) for kind, points in wanted.items() if points]


def measure_layers(
    table: LatencyTable,
    grids: Sequence[LayerGrid],
    backend: Backend | RemoteBackend,
    *,
    rounds: int,
    save: Callable[[LatencyTable], None],
    progress: Progress,
) -> None:
    """Measure the points of ``grids`` that ``table`` lacks and add them.

    Args:
        table: grows in place.
        grids: the points that are needed.
        backend: the runtime.
        rounds: samples per layer.
        save: called with the table after every batch, so that an interruption loses little.
        progress: called after every batch.

    Raises:
        AmcError: A layer does not convert, or the backend fails.
    """
    for kind, points in missing_points(table, grids, rounds):
        for some in _batches(points, LAYERS_AT_ONCE):
            models = {f"{i}x{o}": kind.network(i, o).eval() for i, o in some}
            shapes = {f"{i}x{o}": kind.input_shape(i) for i, o in some}
            timings = time_models(
                models,
                shapes,
                backend,
                batch=table.target.batch,
                threads=table.target.threads,
                rounds=rounds,
            )
            table.add(kind, {(i, o): timings[f"{i}x{o}"].median_ms for i, o in some}, rounds)
            save(table)
            progress(len(some), str(kind))


def measure_networks(
    model: nn.Module,
    graph: Graph,
    networks: Sequence[Sequence[int]],
    backend: Backend | RemoteBackend,
    *,
    batch: int,
    threads: int,
    rounds: int,
    progress: Progress,
) -> NetworkTimes:
    """Time whole networks of the given widths, each batch of them in the same rounds as the dense network.

    Args:
        model: the dense network.
        graph: its channel groups.
        networks: widths of each network, at least one.
        backend: the runtime.
        batch: images per call.
        threads: threads the runtime may use.
        rounds: samples per network.
        progress: called after every batch.

    Raises:
        AmcError: A network does not convert, or the backend fails.
    """
    plan, shape = SlicePlan(graph, model), graph.input_shape
    dense_ms: list[float] = []
    ratios: list[float] = []
    for some in _batches(networks, NETWORKS_AT_ONCE):
        models = {
            str(index): in_eval(slice_model(model, plan.cut(widths))) for index, widths in enumerate(some)
        }
        found = measure_models(
            {"dense": model, **models}, _shape(shape), backend, batch=batch, threads=threads, rounds=rounds
        )
        timings = found.timings
        dense = np.array(timings["dense"].samples_ms)
        dense_ms.append(timings["dense"].median_ms)
        ratios += [float(np.median(np.array(timings[name].samples_ms) / dense)) for name in models]
        progress(len(some), "networks")
    return NetworkTimes(float(np.median(dense_ms)), ratios, found.device, found.version)


def random_networks(space: WidthSpace, cost: Cost, count: int, seed: int) -> list[tuple[int, ...]]:
    """Draw widths of networks of all sizes: random ratios, cut to a random share of the dense cost.

    Args:
        space: the widths to choose from.
        cost: any cost that rises with the widths, such as multiply-adds.
        count: number of networks.
        seed: of the random generator.
    """
    generator = np.random.default_rng(seed)
    reachable = cost(space.minimum) / cost(space.dense)
    found = []
    for _ in range(count):
        share = float(generator.uniform(min(1.1 * reachable, 1.0), 0.95 if reachable < 0.8 else 1.0))
        budget = make_budget("macs", max(share, reachable), cost, space.dense, fit="cut")
        widths: list[int] = []
        for group in range(len(space.dense)):
            requested = space.nearest(group, float(generator.uniform(0.2, 1.0)))
            widths.append(budget.cut(space, widths, requested))
        found.append(tuple(widths))
    return found


def _shape(shape: tuple[int, ...]) -> Shape:
    channels, height, width = shape
    return channels, height, width


def _batches(items: Sequence[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some
