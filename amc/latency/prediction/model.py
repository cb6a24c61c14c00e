"""The latency of a whole network at any widths, from a table of its layers.

The same layer takes another time alone and inside a network: calls cost time, runtimes fuse and reorder
layers, caches are colder. The systematic part of that difference is fitted: one factor a family of layers, a
cost per element that is written, and a constant. All are non-negative, so that the prediction stays monotone
in every width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

import numpy as np

from amc.budget.widths import WidthSpace
from amc.cost.closed_form import layer_widths
from amc.errors import FileError
from amc.graph.groups import Graph
from amc.latency.prediction.layer_kinds import LayerKind, spread
from amc.latency.prediction.table import KIND_SHAPE, TARGET_SHAPE, Points, Surface, Target
from amc.reading import mismatch

VERSION = 1
CONSTANT, WRITTEN = "constant", "written"
ROUNDING = 1e-12
"""Share by which sums in another order are rounded up."""
_SHAPE = {
    "target": TARGET_SHAPE,
    "factors": {...: float},
    "layers": [{"kind": KIND_SHAPE, "inputs": [int], "outputs": [int], "points": [[float]]}],
}


@dataclass(frozen=True)
class LayerGrid:
    """A layer's kind and the widths at which it is measured.

    Attributes:
        kind: see ``LayerKind``.
        inputs, outputs: ascending channel counts; both are the width of a depthwise layer.
    """

    kind: LayerKind
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def points(self) -> tuple[tuple[int, int], ...]:
        """All (input channels, output channels) of the grid."""
        if self.kind.kind == "depthwise":
            return tuple((width, width) for width in self.outputs)
        return tuple((i, o) for i in self.inputs for o in self.outputs)


def layer_grids(
    graph: Graph, kinds: Sequence[LayerKind], space: WidthSpace, points: int
) -> tuple[LayerGrid, ...]:
    """Return the grid of every layer of the graph: at most ``points`` widths an axis, both ends included.

    Args:
        graph: the network's channel groups.
        kinds: the kind of every layer, in forward order.
        space: the widths that a search may choose.
        points: at least 2.
    """
    channels = layer_widths(graph)
    low = min(choice[0] / dense for choice, dense in zip(space.choices, space.dense, strict=True))
    reachable = np.stack(
        [
            channels([space.nearest(group, float(ratio)) for group in range(len(space.dense))])
            for ratio in np.linspace(low, 1.0, 65)
        ]
    )
    grids = []
    for layer, kind in enumerate(kinds):
        inputs, outputs = (
            spread([int(c) for c in np.unique(reachable[:, axis, layer])], points) for axis in (0, 1)
        )
        grids.append(LayerGrid(kind, inputs, outputs))
    return tuple(grids)


class LatencyModel:
    """Predicts the milliseconds of one network on one target; a ``Cost`` for ``amc.budget.budget``.

    Args:
        graph: the network's channel groups.
        target: the device and runtime that the prediction holds for.
        grids: the grid of every layer, in forward order.
        points: measured milliseconds at each layer's grid; further points are left out.
        factors: weight of every feature (``features``), by name. Until fitted, each family has 1 and the
            others have 0.

    Raises:
        FileError: a point of a grid was not measured.
    """

    def __init__(
        self,
        graph: Graph,
        target: Target,
        grids: Sequence[LayerGrid],
        points: Sequence[Points],
        factors: Mapping[str, float] | None = None,
    ) -> None:
        self.target = target
        self._graph = graph
        self.grids = tuple(grids)
        self.points = tuple(_chosen(grid, measured) for grid, measured in zip(grids, points, strict=True))
        families = sorted({grid.kind.family for grid in grids})
        self.names = (*families, WRITTEN, CONSTANT)
        self.factors = dict(factors) if factors is not None else dict.fromkeys(families, 1.0)
        self._weights = np.array([self.factors.get(name, 0.0) for name in self.names])
        self._family = np.array([families.index(grid.kind.family) for grid in grids])
        self._surfaces = [Surface(own) for own in self.points]
        self._known: list[dict[tuple[int, int], float]] = [{} for _ in grids]
        self._tables: dict[int, dict[tuple[int, int], float]] = {}
        self._channels = layer_widths(graph)
        self._positions = np.array([layer.positions for layer in graph.layers], dtype=np.float64)

    def lacking(self, space: WidthSpace) -> str | None:
        """Return in words the first layer that ``space`` makes narrower than it was measured, or None.

        No layer is wider than it was measured: each grid ends at the dense width.
        """
        smallest = self._channels(space.minimum).tolist()
        for layer, grid, *least in zip(self._graph.layers, self.grids, *smallest, strict=True):
            for side, measured, own in zip(
                ("input", "output"), (grid.inputs, grid.outputs), least, strict=True
            ):
                if own < measured[0]:
                    return (
                        f"was profiled from {measured[0]} {side} channels of {layer.name} on, the settings "
                        f"allow {own}"
                    )
        return None

    def features(self, widths: Sequence[int]) -> np.ndarray:
        """Return the features of a network, in the order of ``names``.

        Args:
            widths: channels of every group.

        Returns:
            (features,): milliseconds by family, millions of elements that layers write, and 1.
        """
        inputs, outputs = self._channels(widths)
        found = np.zeros(len(self.names))
        layers = zip(
            self._family, self._surfaces, self._known, inputs.tolist(), outputs.tolist(), strict=True
        )
        for family, surface, known, i, o in layers:
            if (ms := known.get((i, o))) is None:
                ms = known[i, o] = surface(i, o)
            found[family] += ms
        found[-2] = float(self._positions @ outputs) / 1e6
        found[-1] = 1.0
        return found

    def __call__(self, widths: Sequence[int]) -> float:
        """Return the predicted milliseconds at ``widths``, which never fall when a width grows."""
        return float(self._weights @ self.features(widths))

    def many(self, widths: np.ndarray) -> np.ndarray:
        """Return the predicted milliseconds (N,) of N networks of ``widths`` (N, G), rounded up.

        What is within a limit by this is within it by ``__call__``: it is above by ``ROUNDING`` of the value.
        """
        found: np.ndarray = self._parts(widths).sum(axis=1) * (1 + ROUNDING)
        return found

    def with_one_changed(self, widths: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Return the predicted milliseconds (N, G) when each group alone changes its width, rounded up.

        Only the layers that have channels of the group are looked up again.

        Args:
            widths: (N, G) channels of every group, of N networks.
            steps: (N, G) channels that each group gains or loses.
        """
        parts, channels = self._parts(widths), self._all_channels(widths)
        found = np.empty(widths.shape)
        for group, layers in enumerate(self._layers_of):
            total = parts.sum(axis=1) - parts[:, layers].sum(axis=1)
            for layer in layers:
                moved = (
                    channels[:, :, layer] + self._channels.per_width[:, layer, group] * steps[:, group, None]
                )
                total += self._part(layer, moved[:, 0], moved[:, 1])
            found[:, group] = total
        return found * (1 + ROUNDING)

    @cached_property
    def _layers_of(self) -> list[np.ndarray]:
        """For every group the layers that have channels of it."""
        has = np.abs(self._channels.per_width).sum(axis=0) > 0
        return [np.flatnonzero(has[:, group]) for group in range(has.shape[1])]

    def _all_channels(self, widths: np.ndarray) -> np.ndarray:
        """Return input and output channels of every layer: (N, 2, layers)."""
        return np.stack([self._channels(row) for row in widths])

    def _parts(self, widths: np.ndarray) -> np.ndarray:
        """Return the milliseconds of every layer, and the constant: (N, layers + 1)."""
        channels = self._all_channels(widths)
        parts = [self._part(layer, *channels[:, :, layer].T) for layer in range(len(self.grids))]
        return np.stack([*parts, np.full(len(widths), self._weights[-1])], axis=1)

    def _part(self, layer: int, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Return the milliseconds (N,) that a layer adds at N pairs of channels."""
        table = self._tables.setdefault(layer, {})
        pairs = zip(inputs.tolist(), outputs.tolist(), strict=True)
        found = []
        for pair in pairs:
            if (ms := table.get(pair)) is None:
                alone = self._weights[self._family[layer]] * self._surfaces[layer](*pair)
                written = self._weights[-2] * self._positions[layer] * pair[1] / 1e6
                ms = table[pair] = float(alone + written)
            found.append(ms)
        return np.array(found)

    def fitted(self, networks: Sequence[Sequence[int]], measured: Sequence[float]) -> LatencyModel:
        """Return the model with factors fitted by non-negative least squares of the relative error.

        Args:
            networks: widths of each measured network.
            measured: milliseconds of each.
        """
        from scipy.optimize import nnls

        rows = np.stack([self.features(widths) for widths in networks]) / np.asarray(measured)[:, None]
        scale = np.maximum(rows.max(axis=0), 1e-12)
        weights = nnls(rows / scale, np.ones(len(rows)))[0] / scale
        factors = dict(zip(self.names, weights.tolist(), strict=True))
        return LatencyModel(self._graph, self.target, self.grids, self.points, factors)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, which holds all that a prediction needs apart from the graph."""
        return {
            "_version": VERSION,
            "target": self.target.to_json(),
            "factors": self.factors,
            "layers": [
                {
                    "layer": str(grid.kind),
                    "kind": grid.kind.to_json(),
                    "inputs": list(grid.inputs),
                    "outputs": list(grid.outputs),
                    "points": [[*widths, ms] for widths, ms in sorted(points.items())],
                }
                for grid, points in zip(self.grids, self.points, strict=True)
            ],
        }

    @classmethod
    def from_json(
        cls, data: Mapping[str, Any], graph: Graph, kinds: Sequence[LayerKind], where: str
    ) -> LatencyModel:
        """Read the JSON form.

        Args:
            data: the JSON form.
            graph: the network's channel groups.
            kinds: the kind of every layer of the network, in forward order.
            where: names the file in the errors.

        Raises:
            FileError: another version, a malformed field, or another network.
        """
        try:
            if data["_version"] != VERSION:
                raise FileError(
                    f"{where} has _version {repr(data['_version'])[:20]}; this release reads {VERSION}"
                )
            if (fault := mismatch(data, _SHAPE)) is not None:
                raise ValueError(fault)
            grids = [
                LayerGrid(LayerKind.from_json(layer["kind"]), tuple(layer["inputs"]), tuple(layer["outputs"]))
                for layer in data["layers"]
            ]
            _check_layers(grids, graph, kinds, where)
            points = [{(i, o): float(ms) for i, o, ms in layer["points"]} for layer in data["layers"]]
            return cls(graph, Target(**data["target"]), grids, points, data["factors"])
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise FileError(f"{where} is no latency model: {error!r}; profile again") from error


def _check_layers(grids: Sequence[LayerGrid], graph: Graph, kinds: Sequence[LayerKind], where: str) -> None:
    """Refuse grids of other layers than those of the network.

    Raises:
        FileError: names the first layer that differs.
    """
    remedy = "likely cause: another network or data.image_size; run stages=[profile] again"
    if len(grids) != len(kinds):
        raise FileError(f"{where} describes {len(grids)} layers, the network has {len(kinds)}; {remedy}")
    inputs, outputs = layer_widths(graph)(graph.dense_widths).tolist()
    for layer, grid, *own in zip(graph.layers, grids, kinds, inputs, outputs, strict=True):
        if [grid.kind, grid.inputs[-1], grid.outputs[-1]] != own:
            kind, wide, high = own
            raise FileError(
                f"{where} describes {grid.kind} with {grid.inputs[-1]} to {grid.outputs[-1]} channels, "
                f"{layer.name} of the network is {kind} with {wide} to {high}; {remedy}"
            )


def _chosen(grid: LayerGrid, measured: Points) -> Points:
    try:
        return {widths: measured[widths] for widths in grid.points}
    except KeyError as error:
        raise FileError(f"{grid.kind} was not measured at {error.args[0]} channels: profile again") from error


@dataclass(frozen=True)
class Accuracy:
    """Error of predictions for networks that were not used in the fit.

    Attributes:
        median_error, worst_error: median and maximum of |predicted / measured - 1|.
        networks: number of networks.
    """

    median_error: float
    worst_error: float
    networks: int


def accuracy(predicted: Iterable[float], measured: Iterable[float]) -> Accuracy:
    """Compare predictions with measurements of the same networks, both in milliseconds."""
    errors = [abs(p / m - 1) for p, m in zip(predicted, measured, strict=True)]
    return Accuracy(median(errors), max(errors), len(errors))
