"""Stage ``evaluate``: accuracy on the test images, which no earlier stage has touched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from amc.cost.closed_form import macs_cost
from amc.data import check_labels
from amc.scoring.run import logits
from amc.scoring.scores import agreement, top1
from amc.strategy import Strategy

if TYPE_CHECKING:
    from experiments.run.run import Run

BATCH_SIZE = 256


def run(run: Run) -> dict[str, Any]:
    """Judge the dense network and, where there are, the pruned and the fine-tuned one.

    Two networks of which only one is right on a tenth of 10,000 images differ by 0.3 points by chance (one
    standard deviation). How far predictions diverge from the dense network's is told too: it varies less.
    """
    macs, params = macs_cost(run.problem.graph), run.problem.params
    widths = run.problem.graph.dense_widths
    dense = _outputs(run, run.problem.dense)
    facts: dict[str, Any] = {
        "dense": {"top1": _top1(run, dense), "macs": macs(widths), "params": params(widths)}
    }

    def judged(weights: Path) -> dict[str, float]:
        outputs = _outputs(run, run.pruned(weights))
        return {"top1": _top1(run, outputs), "divergence": 0.0 - agreement(outputs, dense)}

    if (run.folder.pruned).exists():
        widths = run.widths_of(Strategy.load(run.folder.strategy))
        cost = {"macs": macs(widths), "params": params(widths)}
        facts["pruned"] = {**judged(run.folder.pruned), **cost}
        if run.folder.recorded("finetune") is not None:
            facts["finetuned"] = {**judged(run.folder.model), **cost}
    for name, row in facts.items():
        print(f"evaluate: {name} {row['top1']:.2f}% on {len(run.problem.splits.test())} test images")
    return facts


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
