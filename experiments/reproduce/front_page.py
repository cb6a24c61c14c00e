"""The README's picture from the records: ``python -m experiments.reproduce.front_page``.

Test accuracy of ResNet-20 on CIFAR-10 against MACs, right after pruning: the dense network, our allocations
and the baselines at half the MACs. Labels add the networks that a search has evaluated, and the accuracy
after one epoch of fine-tuning (one seed).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amc.errors import AmcError
from amc.files import atomic_write_text
from experiments.reproduce.records import read_records
from experiments.reproduce.runs import Result, searches
from experiments.statistics import Mean, mean_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "experiments" / "records"
PICTURE = ROOT / "docs" / "resnet20.svg"
JOB = "resnet20_cifar10_macs50_likeness_val1000_refit512"
AGENTS: Mapping[str, tuple[str, str]] = {
    "ddpg": ("ours: DDPG", "#0072b2"),
    "greedy": ("ours: greedy", "#009e73"),
    "random": ("random search", "#777777"),
    "uniform": ("uniform widths", "#b07d2b"),
    "global_l1": ("global L1", "#d55e00"),
}
"""Label and colour of every agent that is shown."""
EPISODES = 50
"""Length of the searches that are shown; allocations are searches of one episode."""
COUNTED = ("ddpg", "greedy", "random")
"""Agents whose label tells the number of evaluations."""
EPOCH = "finetune.epochs=1"
"""Word of the recipe that the fine-tuned networks of the picture have; the first seed is shown."""
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "front page",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e6eb",
}


@dataclass(frozen=True)
class Row:
    """One agent over all its seeds.

    Attributes:
        label: how the picture names it.
        color: of its marks.
        macs: MACs in percent of the dense network's, the mean over the seeds.
        pruned: test accuracy in percent right after pruning, with its 95% interval over the seeds.
        tuned: the same of one run after an epoch of fine-tuning, if any was fine-tuned so.
    """

    label: str
    color: str
    macs: float
    pruned: Mean
    tuned: float | None


def front_page_svg(results: Sequence[Result]) -> str:
    """Draw the runs of one job; the same runs give the same bytes.

    Raises:
        AmcError: an agent of the picture has no run.
    """
    import matplotlib.style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    results = [result for result in results if result.asked_episodes in (1, EPISODES)]
    rows = [_row(agent, [result for result in results if result.agent == agent]) for agent in AGENTS]
    buffer = io.StringIO()
    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        FigureCanvasSVG(figure)
        _draw(figure.subplots(), rows, results[0].top1("dense") or 0.0, _seeds(results))
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=no_metadata)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _seeds(results: Sequence[Result]) -> int:
    return len({result.widths_seed for result in results if result.agent in AGENTS})


def _row(agent: str, results: Sequence[Result]) -> Row:
    """Return the row of one agent: its searches, one of each seed, and the first that was fine-tuned."""
    own = searches(results)
    pruned = [value for result in own if (value := result.top1("pruned")) is not None]
    if not pruned:
        raise AmcError(f"no run of agent={agent} in {RECORDS / JOB}.jsonl")
    tuned = [
        value
        for result in sorted(results, key=lambda result: result.seed)
        if EPOCH in result.recipe.split() and (value := result.top1("finetuned")) is not None
    ]
    macs = 100 * sum(result.strategy.macs_ratio for result in own) / len(own)
    label, color = AGENTS[agent]
    counted = f"{label}, {evaluations(own)}" if agent in COUNTED else label
    return Row(counted, color, macs, mean_of(pruned), tuned[0] if tuned else None)


def evaluations(results: Sequence[Result]) -> str:
    """Return the number of networks that searches have evaluated, the mean over the seeds, in words."""
    count = round(mean_of([result.facts["search"]["evaluations"] for result in results]).value)
    return f"{count} evaluation{'s' if count != 1 else ''}"


def _draw(axes: Axes, rows: Sequence[Row], dense: float, seeds: int) -> None:
    axes.plot([100], [dense], "D", color="#000000")
    axes.annotate(
        f"dense: {dense:.2f}", (100, dense), xytext=(0, -16), textcoords="offset points", ha="center"
    )
    for row in rows:
        value, color = row.pruned, row.color
        error = None if value.margin is None else [value.margin]
        axes.errorbar([row.macs], [value.value], yerr=error, fmt="o", capsize=3, color=color, markersize=7)
        tuned = "" if row.tuned is None else f" (fine-tuned: {row.tuned:.2f})"
        axes.annotate(
            f"{row.label}: {value.value:.2f}{tuned}",
            (row.macs, value.value),
            xytext=(10, -4),
            textcoords="offset points",
            color=color,
        )
    title = f"ResNet-20, CIFAR-10, right after pruning (mean of {seeds} seeds, bars: 95%)"
    axes.set_title(f"{title}\nfine-tuned: one epoch, one seed", fontsize=10)
    axes.set_xlim(46, 104)
    axes.set_xlabel("MACs, % of dense")
    axes.set_ylabel("top-1 on the test images, %")


def main() -> None:
    """Draw the picture again."""
    results = [result for result in read_records(RECORDS) if result.slug == JOB]
    atomic_write_text(PICTURE, front_page_svg(results))


if __name__ == "__main__":
    main()
