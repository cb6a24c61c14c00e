"""The figures of ``experiments.reproduce``: one SVG for each job, the same bytes for the same runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.pareto import pareto_front
from experiments.report.svg import svg
from experiments.reproduce.paper import PaperRow
from experiments.reproduce.runs import Result, by_row, searches

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Agents = Mapping[str, Sequence[Result]]
"""The runs of every row of the table, by its name."""

COLORS = {
    "ddpg": "#0072b2", "evolution": "#d55e00", "tpe": "#009e73", "random": "#999999", "netadapt": "#56b4e9",
    "ddpg_paper": "#cc79a7", "thompson": "#f0e442", "greedy": "#000000", "uniform": "#b07d2b",
}  # fmt: skip
"""Okabe and Ito's colours, which the colour-blind can distinguish; other agents are grey."""
OTHER = "#777777"
LONG, WINDOW = 200, 20
"""Episodes from which on a search's returns are drawn too, and how many are averaged."""
_STYLE = {"font.size": 9, "grid.color": "#e3e6eb", "legend.fontsize": 8}


def job_svg(results: Sequence[Result], paper: Sequence[PaperRow]) -> str:
    """Draw accuracy against MACs, return against episodes, preserve ratios and Pareto fronts of one job."""
    agents, trained = by_row(searches(results)), by_row(results)

    def draw(figure: Figure) -> None:
        (accuracy, returns), (ratios, fronts) = figure.subplots(2, 2)
        _draw_accuracy(accuracy, agents, trained, paper)
        _draw_returns(returns, agents)
        _draw_ratios(ratios, agents)
        _draw_fronts(fronts, agents)

    text = svg(draw, 11, 8, _STYLE, salt="figures")
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _draw_accuracy(axes: Axes, agents: Agents, trained: Agents, paper: Sequence[PaperRow]) -> None:
    """Draw test accuracy against MACs: a dot for each run after pruning, a triangle after fine-tuning."""
    for name, results in agents.items():
        style: dict[str, Any] = {"color": _color(name), "alpha": 0.75, "markeredgewidth": 0}
        axes.plot(*_accuracies(results, "pruned"), "o", **style, label=name)
        if (tuned := _accuracies(trained[name], "finetuned"))[0]:
            axes.plot(*tuned, "^", **style)
    if (dense := next(iter(agents.values()))[0].top1("dense")) is not None:
        axes.axhline(dense, color="#000000", lw=0.8, ls=":", label="dense")
    for row in paper:
        for value, marker in ((row.before, "o"), (row.after, "^")):
            if value is not None and row.macs_ratio is not None:
                axes.plot(100 * row.macs_ratio, value, marker, mfc="none", mec="#000000")
    title = "test accuracy; dots: after pruning, triangles: fine-tuned"
    axes.set_title(title + (", hollow: the paper" if paper else ""), fontsize=9)
    axes.set_xlabel("MACs, % of dense")
    axes.set_ylabel("top-1, %")
    axes.legend(ncols=2)


def _accuracies(results: Sequence[Result], network: str) -> tuple[list[float], list[float]]:
    """Return MACs in percent of dense and top-1 in percent, of the runs in which the accuracy is known."""
    known = [(r, top1) for r in results if (top1 := r.top1(network)) is not None]
    return [100 * result.strategy.macs_ratio for result, _ in known], [top1 for _, top1 in known]


def _draw_returns(axes: Axes, agents: Agents) -> None:
    """Draw the best return so far against episodes: mean and range over the seeds.

    The mean starts where all have a network that counts, and a search that has ended keeps its best: it never
    falls. Of long searches also the return itself, as in AMC's figures: the mean of ``WINDOW`` episodes and
    seeds.
    """
    for name, results in agents.items():
        curves = [curve for result in results if (curve := best_so_far(result.episodes))]
        if not curves:
            continue
        if max(map(len, curves)) == 1:
            value = float(np.mean([curve[0] for curve in curves]))
            axes.axhline(value, color=_color(name), lw=1, ls="--", label=f"{name} (one evaluation)")
            continue
        table = carried_on(curves)
        numbers = np.arange(1, len(table) + 1)
        axes.plot(numbers, np.mean(table, axis=1), color=_color(name), label=f"{name} ({len(curves)})")
        low, high = np.nanmin(table, axis=1), np.nanmax(table, axis=1)
        axes.fill_between(numbers, low, high, color=_color(name), alpha=0.15, lw=0)
        if len(means := long_means(results)):
            axes.plot(np.arange(len(means)) + WINDOW, means, color=_color(name), lw=0.9, ls=":")
    title = "best return so far: mean and range over the seeds (their number)"
    long = any(len(result.episodes) >= LONG for results in agents.values() for result in results)
    axes.set_title(title + (f"; dotted: return, mean of {WINDOW}" if long else ""), fontsize=9)
    axes.set_xlabel("episodes")
    axes.set_ylabel("return on the search's images")
    if axes.lines:
        axes.legend(loc="lower right")


def carried_on(curves: Sequence[Sequence[float]]) -> np.ndarray:
    """Return curves as columns of equal length: the last value of a shorter one stays."""
    longest = max(map(len, curves))
    return np.array([[*curve, *[curve[-1]] * (longest - len(curve))] for curve in curves]).T


def long_means(results: Sequence[Result]) -> np.ndarray:
    """Return the smoothed returns of searches of which one is long; of none they are empty.

    One of fewer episodes than are averaged does not count, nor does a strategy that was evaluated again.
    """
    returns = [[e["return"] for e in r.episodes] for r in results if len(r.episodes) >= WINDOW]
    return smoothed(returns) if max(map(len, returns), default=0) >= LONG else np.array([])


def smoothed(returns: Sequence[Sequence[float]]) -> np.ndarray:
    """Return the moving mean over ``WINDOW`` episodes of the mean over seeds; the shortest search counts.

    Each has ``WINDOW`` returns or more.
    """
    shortest = min(map(len, returns))
    mean = np.mean([own[:shortest] for own in returns], axis=0)
    found: np.ndarray = np.convolve(mean, np.ones(WINDOW) / WINDOW, mode="valid")
    return found


def best_so_far(episodes: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the best return after each episode, NaN before the first that counts.

    An episode that is over the budget on purpose takes its place but does not count.
    """
    values = [e["return"] if e["phase"] != "relaxed" else -np.inf for e in episodes]
    best = np.array(list(accumulate(values, max)))
    return [float(value) for value in np.where(np.isfinite(best), best, np.nan)]


def _draw_ratios(axes: Axes, agents: Agents) -> None:
    """Draw every group's preserve ratio in forward order, of each agent's best run by the search's return."""
    for name, results in agents.items():
        best = max(results, key=lambda result: result.value)
        shares = [100 * group.preserve_ratio for group in best.strategy.groups]
        axes.step(range(len(shares)), shares, where="mid", color=_color(name), lw=1.3, alpha=0.8, label=name)
    axes.set_title("preserve ratio of every channel group, each agent's best run", fontsize=9)
    axes.set_xlabel("channel group, in forward order")
    axes.set_ylabel("channels kept, %")
    axes.set_ylim(0, 104)


def _draw_fronts(axes: Axes, agents: Agents) -> None:
    """Draw the Pareto front over all networks that an agent has met."""
    for name, results in agents.items():
        met = [e for result in results for e in result.episodes]
        if len(met) < 2:
            continue
        front = pareto_front(met, itemgetter("macs_ratio"), itemgetter("return"))
        costs, values = [100 * e["macs_ratio"] for e in front], [e["return"] for e in front]
        axes.plot(costs, values, "o-", color=_color(name), ms=3, lw=1, label=name)
    axes.set_title("Pareto fronts of the networks met: return against MACs", fontsize=9)
    axes.set_xlabel("MACs, % of dense")
    axes.set_ylabel("return on the search's images")


def _color(name: str) -> str:
    """Return the colour of a row's agent; rows of several lengths of one agent share it."""
    return COLORS.get(name.partition(", ")[0], OTHER)
