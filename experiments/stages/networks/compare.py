"""Stage ``compare``: the strategy and uniform widths at the same budget, with the same refit and training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from amc.budget.allocation import uniform_widths
from amc.progress import progress
from experiments.stages.networks.evaluate import test_top1
from experiments.stages.networks.finetune import finetune
from experiments.stages.networks.prune import cut

if TYPE_CHECKING:
    from experiments.run.run import Run


def run(run: Run) -> dict[str, Any]:
    """Judge both on the test images, right after pruning and after fine-tuning."""
    found = run.widths_of(run.strategy())
    with progress(len(run.problem.chosen.calibration), "compare", "image") as bar:
        builder = run.problem.evaluator(bar.update).builder
    facts: dict[str, Any] = {"dense": {"top1": test_top1(run, run.problem.dense)}}
    for name, widths in (("strategy", found), ("uniform", uniform_widths(run.space, run.budget))):
        model, measured = cut(run, builder, widths, f"compare: {name}")
        row = {
            "macs_ratio": measured["macs_ratio"],
            "params_ratio": measured["params_ratio"],
            "refit": measured["refit"],
            "widths": list(widths),
            "top1_pruned": test_top1(run, model),
        }
        if run.config.finetune.epochs > 0:
            finetune(run, model, run.folder.checkpoint(f"compare-{name}"), f"compare-{name}")
            row["top1_finetuned"] = test_top1(run, model)
        facts[name] = row
        after = f", {row['top1_finetuned']:.2f}% fine-tuned" if "top1_finetuned" in row else ""
        print(
            f"compare: {name} {row['top1_pruned']:.2f}% pruned{after} at {row['macs_ratio']:.4f} of the MACs"
        )
    return facts
