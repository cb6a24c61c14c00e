"""Stage ``evaluate``: accuracy on the test images, which no earlier stage has touched."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from amc.cost.closed_form import macs_cost
from amc.data import check_labels
from amc.scoring.run import logits
from amc.scoring.scores import agreement, top1
from amc.strategy import Strategy
from experiments.stages.networks.quantize import simulation
from experiments.stages.networks.quantize import test_outputs as quantized_outputs
from experiments.stages.networks.train import chance_note

if TYPE_CHECKING:
    from experiments.run.run import Run

BATCH_SIZE = 256
GAP_POINTS, GAP_DEVIATIONS = 3.0, 4
"""Points, and standard deviations, by which accuracies on search and test images may differ."""


def run(run: Run) -> dict[str, Any]:
    """Judge the dense network and, where there are, the pruned, the fine-tuned and the quantized one.

    A dense network at chance level, or far better on search_val than on the test images, is remarked on.

    Two networks of which only one is right on a tenth of 10,000 images differ by 0.3 points by chance (one
    standard deviation). How far predictions diverge from the dense network's is told too: it varies less.
    """
    macs, params = macs_cost(run.problem.graph), run.problem.params
    widths = run.problem.graph.dense_widths
    dense = _outputs(run, run.problem.dense)
    facts: dict[str, Any] = {
        "dense": {
            "top1": _top1(run, dense),
            "images": len(run.problem.splits.test()),
            "macs": macs(widths),
            "params": params(widths),
        }
    }

    def judged(weights: Path) -> dict[str, float]:
        outputs = _outputs(run, run.pruned(weights))
        return {
            "top1": _top1(run, outputs),
            "divergence": 0.0 - agreement(outputs, dense),
            **_changed(run, outputs, dense),
        }

    if run.has_pruned:
        widths = run.widths_of(Strategy.load(run.folder.strategy))
        cost = {"macs": macs(widths), "params": params(widths)}
        facts["pruned"] = {**judged(run.folder.pruned), **cost}
        if run.recorded("finetune") is not None:
            facts["finetuned"] = {**judged(run.folder.model), **cost}
    if (found := simulation(run)) is not None:
        outputs = quantized_outputs(run, found[1])
        cost = {"macs": macs(widths), "params": params(widths)}
        facts["quantized"] = {
            "top1": _top1(run, outputs),
            "divergence": 0.0 - agreement(outputs, dense),
            **_changed(run, outputs, dense),
            **cost,
        }
    for name, row in facts.items():
        print(f"evaluate: {name} {row['top1']:.2f}% on {len(run.problem.splits.test())} test images")
    for note in _notes(run, facts["dense"]["top1"]):
        print(f"evaluate: {note}")
    return facts


def _notes(run: Run, dense_top1: float) -> Iterator[str]:
    """Yield what makes the dense network's accuracy on the test images, in percent, doubtful."""
    if (chance := chance_note(dense_top1, run.problem.splits.test().labels)) is not None:
        yield chance
    search_top1 = (run.recorded("train") or {}).get("val_top1")
    if search_top1 is None:
        return
    shares = [
        (search_top1 / 100, len(run.problem.splits.search_val)),
        (dense_top1 / 100, len(run.problem.splits.test())),
    ]
    chance_gap = math.sqrt(sum(share * (1 - share) / count for share, count in shares))
    if search_top1 - dense_top1 > max(GAP_POINTS, GAP_DEVIATIONS * 100 * chance_gap):
        yield (
            f"dense has {search_top1:.2f}% on search_val and {dense_top1:.2f}% on the test images: it was "
            "probably trained on images of search_val, on which candidates are then judged too well"
        )


def _changed(run: Run, outputs: Tensor, dense: Tensor) -> dict[str, int]:
    """Return on how many test images only the dense network is right, and on how many only the other one.

    Args:
        outputs, dense: logits (N, classes) of the two networks.
    """
    labels = run.problem.splits.test().labels
    right, dense_right = (each.argmax(1) == labels for each in (outputs, dense))
    return {"lost": int((dense_right & ~right).sum()), "gained": int((right & ~dense_right).sum())}


def test_top1(run: Run, model: nn.Module) -> float:
    """Return the accuracy of a network on the test images, in percent."""
    return _top1(run, _outputs(run, model))


def _outputs(run: Run, model: nn.Module) -> Tensor:
    """Return a network's logits on the test images: (N, classes)."""
    outputs = logits(model.to(run.problem.device), run.problem.splits.test().images, BATCH_SIZE)
    model.cpu()
    return outputs


def _top1(run: Run, outputs: Tensor) -> float:
    labels = run.problem.splits.test().labels
    check_labels(labels, outputs.shape[1])
    return top1(outputs, labels)
