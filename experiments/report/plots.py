"""Plots as inline SVG that takes its colours from the page.

The figures are drawn in placeholder colours that are then replaced by CSS variables (``var(--ink)``), so the
same picture follows a light and a dark theme. Text stays text. The same input gives the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
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
_AXIS = {
    "top1": "top-1 during the search, %",
    "likeness": "likeness during the search",
    "return": "return",
}

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

_RING: dict[str, Any] = {
    "markersize": 10,
    "markerfacecolor": "none",
    "markeredgecolor": BEST,
    "markeredgewidth": 1.8,
}


def widths_svg(groups: Sequence[Json]) -> str:
    """Draw channels per group (dense outlined, kept filled) beside the share that is kept.

    Each group has ``name`` and the channel counts ``dense`` and ``kept``.
    """
    return render("widths", 0.9 + 0.27 * len(groups), lambda figure: _draw_widths(figure, groups))


def densities_svg(rounds: Sequence[Json]) -> str:
    """Draw the share of its weights that every layer keeps, one line for each round of fine-grained pruning.

    Each round has ``density`` (of all weights) and ``layers`` with ``name``, ``weights`` and ``kept``.
    """
    return render("densities", 3.6, lambda figure: _draw_densities(figure, rounds))


def search_svg(episodes: Sequence[Json]) -> str:
    """Draw the return of every episode, the best so far, and the warm-up as a shaded span.

    Each episode has ``episode``, ``return`` and ``phase`` (``warmup``, ``search`` or ``relaxed``); also
    ``learning`` for an agent that learns, whose episodes without noise are joined by a line.
    """
    return render("search", 3.6, lambda figure: _draw_search(figure, episodes))


def learning_svg(episodes: Sequence[Json]) -> str:
    """Draw how far an agent has learned: its critic's rank correlation, and its share of explored steps.

    Each episode has ``episode`` and ``learning``, with ``critic_rank`` (in [-1, 1]) and ``explored`` (in
    [0, 1]), each a number or None (``agents.offpolicy.diagnostics``).
    """
    return render("learning", 2.6, lambda figure: _draw_learning(figure, episodes))


def scatter_svg(episodes: Sequence[Json], score: str = "top1") -> str:
    """Draw a score of every episode against its MACs in percent of the dense network's.

    Each episode has ``macs_ratio`` (fraction), ``return``, ``phase`` and the score: ``top1`` (percent), or
    ``likeness`` for a network without accuracy.
    """
    return render("scatter", 4.2, lambda figure: _draw_scatter(figure, episodes, score))


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


def fronts_svg(
    points: Sequence[Json],
    fronts: Mapping[str, Sequence[Json]],
    score: str,
    *,
    dense: float | None = None,
    chosen: Sequence[Json] = (),
) -> str:
    """Draw a score against MACs and against parameters, in percent of the dense network's.

    Args:
        points: all networks that were judged, each with ``macs_ratio``, ``params_ratio`` (fractions) and
            ``score``.
        fronts: the Pareto front by cost, ``macs`` and ``params``, in ascending cost.
        score: ``top1`` (percent) or ``return``.
        dense: the dense network's score, if known.
        chosen: the networks that were kept.
    """

    def draw(figure: Figure) -> None:
        _draw_fronts(figure, points, fronts, score, dense, chosen)

    return render(f"front-{score}", 4.2, draw)


def _draw_widths(figure: Figure, groups: Sequence[Json]) -> None:
    channels, preserved = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    dense = [group["dense"] for group in groups]
    kept = [group["kept"] for group in groups]
    _draw_channels(channels, dense, kept)
    channels.set_yticks(range(len(groups)), [shortened(str(group["name"])) for group in groups])
    channels.tick_params(axis="y", length=0, pad=6, labelcolor=INK)
    channels.set_ylim(len(groups) - 0.4, -0.6)
    _draw_shares(preserved, [100 * k / d if d else 0.0 for k, d in zip(kept, dense, strict=True)])
    _legend(channels, columns=2)


def _draw_channels(axes: Axes, dense: Sequence[int], kept: Sequence[int]) -> None:
    """Draw channel counts of every group as bars with both numbers beside them."""
    rows = range(len(dense))
    axes.barh(rows, kept, height=0.62, color=ACCENT, label="kept")
    axes.barh(rows, dense, height=0.62, facecolor="none", edgecolor=MUTED, linewidth=0.9, label="dense")
    for row in rows:
        axes.annotate(
            f"{kept[row]} / {dense[row]}",
            (dense[row], row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=MUTED,
            fontsize=8.5,
        )
    axes.set_xlim(0, 1.16 * max(dense))
    axes.set_xlabel("channels")
    axes.grid(visible=False, axis="y")


def _draw_shares(axes: Axes, shares: Sequence[float]) -> None:
    """Draw the share of channels that every group keeps, in percent."""
    rows = range(len(shares))
    axes.hlines(rows, 0, shares, color=ACCENT, linewidth=1.4)
    axes.plot(shares, rows, "o", color=ACCENT, markersize=4.5)
    axes.set_xlim(0, 104)
    axes.set_xlabel("channels kept, %")
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.grid(visible=False, axis="y")


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


def _draw_search(figure: Figure, episodes: Sequence[Json]) -> None:
    axes = figure.subplots()
    warmup = [episode["episode"] for episode in episodes if episode.get("phase") == "warmup"]
    if warmup:
        axes.axvspan(
            min(warmup) - 0.5, max(warmup) + 0.5, color=WARM, alpha=0.13, linewidth=0, label="warm-up"
        )
    numbers = [episode["episode"] for episode in episodes]
    returns = [episode["return"] for episode in episodes]
    axes.plot(numbers, returns, "o", color=ACCENT, markersize=3.6, alpha=0.65, mew=0, label="episode")
    kept = [episode for episode in episodes if episode.get("phase") != "relaxed"]
    best = list(accumulate((episode["return"] for episode in kept), max))
    counted = [episode["episode"] for episode in kept]
    axes.step(counted, best, where="post", color=BEST, lw=1.8, label="best so far")
    if still := [own for own in episodes if own.get("learning", {}).get("explored") == 0.0]:
        axes.plot(
            [own["episode"] for own in still],
            [own["return"] for own in still],
            "o-",
            color=WARM,
            markersize=3.6,
            lw=1.2,
            label="policy without noise",
        )
    axes.set_xlabel("episode")
    axes.set_ylabel("return")
    axes.margins(x=0.01)
    _legend(axes, columns=4)


def _draw_learning(figure: Figure, episodes: Sequence[Json]) -> None:
    panels = (
        ("critic_rank", "critic's rank correlation", (-1.05, 1.05)),
        ("explored", "explored steps", (0, 1.05)),
    )
    for axes, (key, label, limits) in zip(figure.subplots(1, 2), panels, strict=True):
        known = [own for own in episodes if own["learning"][key] is not None]
        axes.plot(
            [own["episode"] for own in known], [own["learning"][key] for own in known], color=ACCENT, lw=1.4
        )
        axes.axhline(0.0, color=MUTED, lw=0.8)
        axes.set(xlabel="episode", ylabel=label, ylim=limits)


def _draw_scatter(figure: Figure, episodes: Sequence[Json], score: str) -> None:
    axes = figure.subplots()

    def place(some: Sequence[Json]) -> tuple[list[float], list[float]]:
        return [100 * episode["macs_ratio"] for episode in some], [episode[score] for episode in some]

    phases = (
        ("warmup", WARM, "warm-up"),
        ("search", ACCENT, "search"),
        ("relaxed", MUTED, "over the budget"),
    )
    for phase, color, label in phases:
        if points := [episode for episode in episodes if episode.get("phase") == phase]:
            axes.plot(*place(points), "o", color=color, markersize=4.4, alpha=0.65, mew=0, label=label)
    if kept := [episode for episode in episodes if episode.get("phase") != "relaxed"]:
        best = max(kept, key=lambda episode: episode["return"])
        axes.plot(*place([best]), "o", **_RING, label="best return")
    axes.set_xlabel("MACs, % of dense")
    axes.set_ylabel(_AXIS[score])
    _legend(axes, columns=4)


def _draw_fronts(
    figure: Figure,
    points: Sequence[Json],
    fronts: Mapping[str, Sequence[Json]],
    score: str,
    dense: float | None,
    chosen: Sequence[Json],
) -> None:
    panels = figure.subplots(1, 2, sharey=True)
    for axes, cost, title in zip(panels, ("macs", "params"), ("MACs", "parameters"), strict=True):

        def place(some: Sequence[Json], ratio: str = f"{cost}_ratio") -> tuple[list, list]:
            return [100 * point[ratio] for point in some], [point[score] for point in some]

        axes.plot(*place(points), "o", color=WARM, markersize=3.6, alpha=0.35, mew=0, label="judged")
        axes.plot(*place(fronts[cost]), "o-", color=ACCENT, markersize=4, lw=1.6, label="Pareto front")
        if dense is not None:
            axes.plot([100], [dense], "D", color=INK, markersize=6, label="dense")
        if chosen:
            axes.plot(*place(chosen), "o", **_RING, label="chosen")
        axes.set_xlabel(f"{title}, % of dense")
    panels[0].set_ylabel(_AXIS[score])
    _legend(panels[1], columns=4)


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
