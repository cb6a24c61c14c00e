"""Stage ``evaluate``: accuracy on the test images, which no earlier stage has touched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from amc.cost import macs_cost
from amc.data import check_labels
from amc.evaluation import logits, top1
from amc.strategy import Strategy

if TYPE_CHECKING:
    from experiments.run import Run

BATCH_SIZE = 256


def run(run: Run) -> dict[str, Any]:
    """Judge the dense network and, where there are, the pruned and the fine-tuned one."""
    macs, params = macs_cost(run.graph), run.params
    dense = run.graph.dense_widths
    facts: dict[str, Any] = {
        "dense": {"top1": test_top1(run, run.dense), "macs": macs(dense), "params": params(dense)}
    }
    if (run.folder / "pruned.safetensors").exists():
        widths = run.widths_of(Strategy.load(run.folder / "strategy.json"))
        cost = {"macs": macs(widths), "params": params(widths)}
        facts["pruned"] = {"top1": test_top1(run, run.pruned("pruned.safetensors")), **cost}
        if run.recorded("finetune") is not None:
            facts["finetuned"] = {"top1": test_top1(run, run.pruned("model.safetensors")), **cost}
    for name, row in facts.items():
        print(f"evaluate: {name} {row['top1']:.2f}% on {len(run.splits.test())} test images")
    return facts


def test_top1(run: Run, model: nn.Module) -> float:
    """Return the accuracy of a network on the test images, in percent."""
    test = run.splits.test()
    placed = model.to(run.device)
    outputs = logits(placed, test.images, BATCH_SIZE)
    model.cpu()
    check_labels(test.labels, outputs.shape[1])
    return top1(outputs, test.labels)
