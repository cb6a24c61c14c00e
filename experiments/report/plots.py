"""Plots as inline SVG that takes its colours from the page.

The figures are drawn in placeholder colours that are then replaced by CSS variables (``var(--ink)``), so the
same picture follows a light and a dark theme. Text stays text. The same input gives the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.report.svg import svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Json = Mapping[str, Any]

INK, MUTED, GRID, ACCENT, WARM, BEST = (f"#0102{n:02x}" for n in range(6))
"""Placeholder colours: text, secondary marks, grid lines, kept channels and search, warm-up, best so far."""

_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", ACCENT: "accent", WARM: "warm", BEST: "best"}
_INCH_WIDE = 9.6
_LEARNING: Mapping[str, tuple[str, tuple[float, float]]] = {
    "critic_rank": ("critic's rank correlation", (-1.05, 1.05)),
    "explored": ("explored steps", (0, 1.05)),
}
"""What an agent may tell of its learning -> label and limits of its plot."""

_STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "text.color": INK,
}


def densities_svg(rounds: Sequence[Json]) -> str:
    """Draw the share of its weights that every layer keeps, one line for each round of fine-grained pruning.

    Each round has ``density`` (of all weights) and ``layers`` with ``name``, ``weights`` and ``kept``.
    """
    return render("densities", 3.6, lambda figure: _draw_densities(figure, rounds))


def learning_svg(episodes: Sequence[Json]) -> str:
    """Draw how far an agent has learned: its critic's rank correlation, and its share of explored steps.

    Each episode has ``episode`` and may have ``learning``, with ``critic_rank`` (in [-1, 1]) and ``explored``
    (in [0, 1]), each a number or None (``agents.offpolicy.diagnostics``). An agent may tell one of them, or
    none: then the text is empty.
    """
    known = [key for key in _LEARNING if any(key in own.get("learning", {}) for own in episodes)]
    return render("learning", 2.6, lambda figure: _draw_learning(figure, episodes, known)) if known else ""


def trust_svg(rows: Sequence[Json], reward: str) -> str:
    """Draw the accuracy of networks on unseen images (percent) against their score in the search.

    Args:
        rows: ``search`` of each network with its ``reward``, and ``unseen`` with its ``accuracy``.
        reward: name of the score.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        scores = [row["search"]["reward"] for row in rows]
        axes.plot(scores, [row["unseen"]["accuracy"] for row in rows], "o", color=ACCENT, markersize=5, mew=0)
        axes.set(xlabel=f"{reward} on the search images", ylabel="top-1 on unseen images, %")

    return render("trust", 3.6, draw)


def _draw_densities(figure: Figure, rounds: Sequence[Json]) -> None:
    axes = figure.add_subplot()
    for index, own in enumerate(rounds):
        shares = [100 * layer["kept"] / layer["weights"] for layer in own["layers"]]
        last = index == len(rounds) - 1
        axes.plot(
            range(1, len(shares) + 1),
            shares,
            color=ACCENT if last else MUTED,
            alpha=1.0 if last else 0.3 + 0.4 * index / len(rounds),
            marker="o",
            markersize=3,
            linewidth=1.4,
            label=f"{own['density']:.0%} of all weights",
        )
    axes.set(xlabel="layer, in forward order", ylabel="weights kept, %", ylim=(0, 105))
    _legend(axes, columns=len(rounds))


def _draw_learning(figure: Figure, episodes: Sequence[Json], keys: Sequence[str]) -> None:
    for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        label, limits = _LEARNING[key]
        known = [own for own in episodes if own.get("learning", {}).get(key) is not None]
        axes.plot(
            [own["episode"] for own in known], [own["learning"][key] for own in known], color=ACCENT, lw=1.4
        )
        axes.axhline(0.0, color=MUTED, lw=0.8)
        axes.set(xlabel="episode", ylabel=label, ylim=limits)


def shortened(name: str, limit: int = 40) -> str:
    """The name, or its two ends around an ellipsis: coupled layers can have very long ones."""
    half = (limit - 1) // 2
    return name if len(name) <= limit else f"{name[:half]}…{name[-half:]}"


def _legend(axes: Axes, *, columns: int) -> None:
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=columns,
        borderaxespad=0.2,
        handlelength=1.4,
        labelcolor=MUTED,
    )


def render(name: str, height: float, draw: Callable[[Figure], None]) -> str:
    """Return a drawing, ``height`` inches high, as an ``<svg>`` whose ids start with ``name``."""

    def transparent(figure: Figure) -> None:
        figure.patch.set_alpha(0)
        draw(figure)
        for axes in figure.axes:
            axes.patch.set_alpha(0)

    return _for_page(svg(transparent, _INCH_WIDE, height, _STYLE, salt=name), name)


def _for_page(text: str, name: str) -> str:
    """Drop the prologue and the fixed size, make ids unique on the page, and put variables for colours."""
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var(--{variable})")
    return text
