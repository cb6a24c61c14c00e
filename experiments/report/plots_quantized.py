"""Plots of quantized networks; see ``experiments.report.plots``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from experiments.report.plots import ACCENT, INK, MUTED, render, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Json = Mapping[str, Any]
_MARKS = ("o", "s", "^", "D", "v")


def sensitivity_svg(layers: Sequence[Json]) -> str:
    """Draw the relative error of the outputs, with one layer alone quantized, as a heat map.

    Each layer has ``layer``, its name, and ``errors`` by number of bits.
    """
    return render("sensitivity", 0.6 + 0.24 * len(layers), lambda figure: _draw_heat(figure, layers))


def chain_svg(points: Sequence[Json]) -> str:
    """Draw accuracy against latency, on each runtime, and against the size of the file.

    Each point has ``label``, ``top1`` (percent), ``bytes`` (or None) and ``latency_ms`` by runtime.
    """
    return render("chain", 3.6, lambda figure: _draw_chain(figure, points))


def _draw_heat(figure: Figure, layers: Sequence[Json]) -> None:
    axes = figure.subplots()
    bits = list(layers[0]["errors"])
    for row, layer in enumerate(layers):
        for column, error in enumerate(layer["errors"].values()):
            # Colours are variables of the page, so a cell is darkened by its opacity: 1e-6 to 1 in decades.
            share = min(max((math.log10(max(error, 1e-6)) + 6) / 6, 0), 1)
            axes.barh(row, 0.96, left=column - 0.48, height=0.92, color=ACCENT, alpha=0.05 + 0.95 * share)
            axes.annotate(f"{error:.1e}", (column, row), ha="center", va="center", fontsize=8, color=INK)
    axes.set_yticks(range(len(layers)), [shortened(str(layer["layer"])) for layer in layers])
    axes.set_xticks(range(len(bits)), [f"{each} bits" for each in bits])
    axes.tick_params(length=0, labelcolor=INK)
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_xlim(-0.5, len(bits) - 0.5)
    axes.grid(visible=False)


def _draw_chain(figure: Figure, points: Sequence[Json]) -> None:
    panels = figure.subplots(1, 2, sharey=True)
    runtimes = list(dict.fromkeys(name for point in points for name in point["latency_ms"]))
    known = [point for point in points if point["top1"] is not None]
    for mark, runtime in zip(cycle(_MARKS), runtimes, strict=False):
        timed = [point for point in known if runtime in point["latency_ms"]]
        _line(panels[0], [(p["latency_ms"][runtime], p) for p in timed], mark, runtime)
    _line(panels[1], [(p["bytes"] / 1024, p) for p in known if p["bytes"]], "o", "")
    panels[0].set(xlabel="latency, ms", ylabel="top-1 on the test images, %", xlim=(0, None))
    panels[1].set(xlabel="file, KiB", xlim=(0, None))
    if runtimes:
        panels[0].legend(loc="lower right", labelcolor=MUTED)


def _line(axes: Axes, places: Sequence[tuple[float, Json]], mark: str, label: str) -> None:
    if not places:
        return
    axes.plot([x for x, _ in places], [p["top1"] for _, p in places], color=ACCENT, marker=mark, label=label)
    for x, point in places:
        axes.annotate(
            point["label"],
            (x, point["top1"]),
            xytext=(4, 5),
            textcoords="offset points",
            fontsize=8,
            color=MUTED,
        )
