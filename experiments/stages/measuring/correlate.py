"""Stage ``correlate``: how well the return of the search predicts the accuracy on the test images.

Policies from the search, evenly spread over the ranks of their returns, are pruned, evaluated on the test
images, fine-tuned and evaluated again. Nothing is chosen by these accuracies: the run keeps its strategy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from amc.errors import AmcError
from experiments.pareto import evenly
from experiments.run.values import LEAST_POLICIES
from experiments.stages.measuring.trials import different, tried
from experiments.stages.networks.evaluate import test_top1
from experiments.stages.networks.finetune import finetune
from experiments.stages.networks.prune import cut
from experiments.statistics import bootstrap_correlation

if TYPE_CHECKING:
    from amc.candidate.builder import CandidateBuilder
    from experiments.run.run import Run

PAIRS = (("return", "top1_pruned"), ("return", "top1_finetuned"), ("top1_pruned", "top1_finetuned"))

ROW = {"widths": [int], "return": float, "macs_ratio": float, "top1_pruned": float, "top1_finetuned?": float}
"""Shape of a line of ``correlate.jsonl``; see ``amc.reading``."""


def run(run: Run) -> dict[str, Any]:
    """Write ``correlate.jsonl``, one line for each policy; a killed stage resumes with the next policy.

    Raises:
        FileError: there is no search of this run's dense network.
        AmcError: the search has evaluated fewer than 3 different networks.
    """
    chosen = policies(run.records.require_episodes(), run.config.correlate.policies)
    builder = run.problem.evaluator().builder
    found = tried(
        run, chosen, run.folder.correlate, ROW, lambda widths: _judged(run, builder, widths), "correlate"
    )
    spearman = correlations(found)
    for pair, (value, low, high) in spearman.items():
        print(f"correlate: {pair}: {value:.2f} [{low:.2f}, {high:.2f}] over {len(found)} policies")
    return {"policies": len(found), "epochs": run.config.finetune.epochs, "spearman": spearman}


def policies(episodes: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Choose at most ``count`` different networks within the budget, evenly by the rank of their returns.

    Raises:
        AmcError: the search has evaluated fewer than 3 different networks.
    """
    found = different(episodes)
    if len(found) < LEAST_POLICIES:
        raise AmcError(
            f"the search evaluated {len(found)} networks; a correlation needs at least {LEAST_POLICIES}"
        )
    return list(evenly(sorted(found, key=lambda point: point["return"]), count))


def correlations(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float, float]]:
    """Return Spearman's rank correlation with its 95% bootstrap interval for each pair that varies.

    Args:
        rows: the lines of ``correlate.jsonl``.

    Returns:
        pair, such as ``return ~ top1_pruned`` -> (correlation, low, high).
    """
    found = {}
    for pair in PAIRS:
        one, other = ([row[name] for row in rows if name in row] for name in pair)
        if min(len(set(one)), len(set(other))) > 1:
            interval = bootstrap_correlation(one, other)
            found[" ~ ".join(pair)] = (interval.value, interval.low, interval.high)
    return found


def _judged(run: Run, builder: CandidateBuilder, widths: tuple[int, ...]) -> dict[str, float]:
    model, facts = cut(run, builder, widths)
    row = {"macs_ratio": facts["macs_ratio"], "top1_pruned": test_top1(run, model)}
    if run.config.finetune.epochs > 0:
        checkpoint = run.folder.checkpoint("correlate")
        finetune(run, model, checkpoint, "correlate")
        checkpoint.unlink(missing_ok=True)
        row["top1_finetuned"] = test_top1(run, model)
    return row
