"""Measured latency of layers at a grid of widths: a readable file for each target, and interpolation."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from amc.digest import digest
from amc.errors import FileError
from amc.files import atomic_write_json
from amc.latency.prediction.layer_kinds import LayerKind
from amc.latency.prediction.settings import ProfileSettings
from amc.reading import mismatch, read_json

VERSION = 1
KIND_SHAPE = {"kind": str, ...: (str, int, bool, [int])}
TARGET_SHAPE = {
    **dict.fromkeys(("device", "runtime", "version", "precision"), str),
    **dict.fromkeys(("threads", "batch"), int),
    "setup?": str,
}
"""Shapes in files; see ``amc.reading``."""
_SHAPE = {"target": TARGET_SHAPE, "layers": [{"kind": KIND_SHAPE, "points": [[float]], "rounds?": [int]}]}
Points = dict[tuple[int, int], float]
"""(input channels, output channels) -> milliseconds."""


@dataclass(frozen=True)
class Target:
    """The device, runtime and settings that a latency holds for.

    Attributes:
        device: the processor's name.
        runtime: a name in ``amc.latency.BACKENDS``, or the dotted path of a runtime of the user's own.
        version: version of the runtime.
        precision: number format, such as ``float32``.
        threads: threads the runtime may use.
        batch: images per call.
        setup: what else the time depends on, see ``amc.latency.remote.protocol.setup_of``.
    """

    device: str
    runtime: str
    version: str
    precision: str
    threads: int
    batch: int
    setup: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, without a setup if there is none."""
        return {name: value for name, value in asdict(self).items() if name != "setup" or value}

    @property
    def file_name(self) -> str:
        """A file name that differs between targets."""
        parts = (
            self.device,
            self.runtime,
            self.version,
            self.precision,
            f"{self.threads}t",
            f"b{self.batch}",
            *([digest(self.setup)[:8]] if self.setup else []),
        )
        return "_".join("".join(c if c.isalnum() or c in ".-" else "-" for c in p) for p in parts) + ".json"


@dataclass
class LatencyTable:
    """Milliseconds of layers by kind and widths on one target; it grows as networks are profiled.

    Attributes:
        target: device, runtime and settings of the measurements.
        layers: the measured points of each kind of layer.
        rounds: the samples of each point; those of tables that do not tell had the default number.
    """

    target: Target
    layers: dict[LayerKind, Points] = field(default_factory=dict)
    rounds: dict[LayerKind, dict[tuple[int, int], int]] = field(default_factory=dict)

    def knows(self, kind: LayerKind, widths: tuple[int, int], rounds: int) -> bool:
        """Whether a point was measured with at least so many rounds."""
        return widths in self.layers.get(kind, {}) and self._rounds(kind, widths) >= rounds

    def add(self, kind: LayerKind, points: Points, rounds: int) -> None:
        """Add points that were measured with so many rounds."""
        self.layers.setdefault(kind, {}).update(points)
        self.rounds.setdefault(kind, {}).update(dict.fromkeys(points, rounds))

    def _rounds(self, kind: LayerKind, widths: tuple[int, int]) -> int:
        return self.rounds.get(kind, {}).get(widths, ProfileSettings.rounds)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form: points are [input channels, output channels, ms], each with its rounds."""
        return {
            "_version": VERSION,
            "target": self.target.to_json(),
            "layers": [
                {
                    "layer": str(kind),
                    "kind": kind.to_json(),
                    "points": [[*widths, ms] for widths, ms in sorted(points.items())],
                    "rounds": [self._rounds(kind, widths) for widths in sorted(points)],
                }
                for kind, points in sorted(self.layers.items())
            ],
        }

    def save(self, path: Path) -> None:
        """Write the JSON form atomically.

        Raises:
            AmcError: The file cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(path, self.to_json())

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> LatencyTable:
        """Read the JSON form.

        Args:
            data: the JSON form.
            where: names the file in the errors.

        Raises:
            FileError: another version or a malformed field.
        """
        try:
            if data["_version"] != VERSION:
                raise FileError(
                    f"{where} has _version {repr(data['_version'])[:20]}; this release reads {VERSION}"
                )
            if (fault := mismatch(data, _SHAPE)) is not None:
                raise ValueError(fault)
            table = cls(Target(**data["target"]))
            for layer in data["layers"]:
                kind, points = LayerKind.from_json(layer["kind"]), layer["points"]
                table.layers[kind] = {(int(i), int(o)): float(t) for i, o, t in points}
                if (rounds := layer.get("rounds")) is not None:
                    counted = zip(points, rounds, strict=True)
                    table.rounds[kind] = {(int(i), int(o)): count for (i, o, _), count in counted}
            return table
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FileError(f"{where} is no latency table: {error!r}; remove it to measure again") from error

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Read a table.

        Raises:
            FileError: the file is missing, damaged, or no latency table of this version.
        """
        data = read_json(path, {}, "remove it to measure again")
        return cls.from_json(data, str(path))


class Surface:
    """Latency of one kind of layer over (input, output) channels: monotone, piecewise bilinear.

    Measured points need not rise with the width: a width that suits the hardware can be faster than a
    narrower one. A budget's cut needs a cost that never falls, so each point is raised to the largest one
    at or below it on both axes. Outside the grid the nearest point of its border counts: the slopes of two
    axes, continued, can fall.

    Args:
        points: a full grid; for a depthwise layer, which has one width, the diagonal of a grid.

    Raises:
        FileError: points are missing from the grid.
    """

    def __init__(self, points: Points) -> None:
        if all(inputs == outputs for inputs, outputs in points):
            points = {(1, outputs): ms for (_, outputs), ms in points.items()}
        self._inputs = sorted({widths[0] for widths in points})
        self._outputs = sorted({widths[1] for widths in points})
        try:
            grid = np.array([[points[i, o] for o in self._outputs] for i in self._inputs], dtype=np.float64)
        except KeyError as error:
            raise FileError(f"the latency table lacks the widths {error.args[0]}: profile again") from error
        self._grid = np.maximum.accumulate(np.maximum.accumulate(grid, axis=0), axis=1)

    def __call__(self, inputs: int, outputs: int) -> float:
        """Return milliseconds at these channels."""
        i, u = _place(self._inputs, inputs)
        j, v = _place(self._outputs, outputs)
        corner = self._grid[i : i + 2, j : j + 2]
        along = corner[0] if len(corner) == 1 else (1 - u) * corner[0] + u * corner[1]
        return float(along[0] if len(along) == 1 else (1 - v) * along[0] + v * along[1])


def _place(values: list[int], value: int) -> tuple[int, float]:
    """Return the interval that holds ``value`` (or is nearest) and the position in it, 0 to 1."""
    if len(values) == 1:
        return 0, 0.0
    i = min(max(bisect_right(values, value) - 1, 0), len(values) - 2)
    position = (value - values[i]) / (values[i + 1] - values[i])
    return i, min(max(position, 0.0), 1.0)


def default_folder() -> Path:
    """Return the folder of latency tables in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "amc-search" / "latency"
