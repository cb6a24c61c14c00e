"""Stage ``evaluate``: accuracy on the test images, which no earlier stage has touched."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from tqdm import tqdm

from amc.cost.closed_form import macs_cost
from amc.data import check_labels
from amc.scoring.corruptions import corrupted
from amc.scoring.run import logits, outputs
from amc.scoring.scores import agreement, top1
from amc.strategy import Strategy
from experiments.stages.networks.quantize import BATCH_SIZE as QUANTIZED_BATCH
from experiments.stages.networks.quantize import simulation
from experiments.stages.networks.train import chance_note

if TYPE_CHECKING:
    from experiments.run.run import Run

BATCH_SIZE = 256
GAP_POINTS, GAP_DEVIATIONS = 3.0, 4
"""Points, and standard deviations, by which accuracies on search and test images may differ."""


Answer = Callable[[Tensor], Tensor]
"""A network as a function from normalised images (N, C, H, W) to logits (N, classes)."""


def run(run: Run) -> dict[str, Any]:
    """Judge the dense network and, where there are, the pruned, the fine-tuned and the quantized one.

    A dense network at chance level, or far better on search_val than on the test images, is remarked on.

    Two networks of which only one is right on a tenth of 10,000 images differ by 0.3 points by chance (one
    standard deviation). How far predictions diverge from the dense network's is told too: it varies less.
    ``evaluate.corruptions`` are judged after the test images themselves.
    """
    images, answers = run.problem.splits.test().images, answers_of(run)
    told = {name: answer(images) for name, answer in answers.items()}
    facts = {name: _facts(run, name, told) for name in told}
    for name, row in facts.items():
        print(f"evaluate: {name} {row['top1']:.2f}% on {len(images)} test images")
    for note in _notes(run, facts["dense"]["top1"]):
        print(f"evaluate: {note}")
    for kind in run.config.evaluate.corruptions:
        for name, top1_of in corrupted_top1(run, answers, kind).items():
            facts[name].setdefault("corrupted", {})[kind] = top1_of
        line = ", ".join(f"{name} {row['corrupted'][kind]:.2f}%" for name, row in facts.items())
        print(f"evaluate: with {kind}: {line}")
    return facts


def _facts(run: Run, name: str, told: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what the logits of network ``name`` say, beside the dense network's, and its cost."""
    found, dense = told[name], told["dense"]
    if name == "dense":
        beside: dict[str, float] = {"images": len(dense)}
    else:
        beside = {"divergence": 0.0 - agreement(found, dense), **_changed(run, found, dense)}
    return {"top1": _top1(run, found), **beside, **_cost(run, pruned=name != "dense")}


def answers_of(run: Run) -> dict[str, Answer]:
    """Return the run's networks by name."""
    found = {"dense": answer_of(run, run.problem.dense)}
    if run.records.has_pruned:
        found["pruned"] = answer_of(run, run.pruned(run.folder.pruned))
        if run.records.read("finetune") is not None:
            found["finetuned"] = answer_of(run, run.pruned(run.folder.model))
    if (quantized := simulation(run)) is not None:
        found["quantized"] = partial(outputs, quantized[1], batch_size=QUANTIZED_BATCH)
    return found


def answer_of(run: Run, model: nn.Module) -> Answer:
    """Return a network as a function; it computes on the run's device and is on the CPU otherwise."""

    def answer(images: Tensor) -> Tensor:
        found = logits(model.to(run.problem.device), images, BATCH_SIZE)
        model.cpu()
        return found

    return answer


def _cost(run: Run, *, pruned: bool) -> dict[str, float]:
    graph = run.problem.graph
    widths = graph.dense_widths
    if pruned and run.records.has_pruned:
        widths = run.widths_of(Strategy.load(run.folder.strategy))
    return {"macs": macs_cost(graph)(widths), "params": run.problem.params(widths)}


def corrupted_top1(run: Run, answers: Mapping[str, Answer], kind: str) -> dict[str, float]:
    """Return the accuracy of each network on the corrupted test images, in percent.

    The images are corrupted in parts, so that there is never a second copy of all of them.
    """
    splits = run.problem.splits
    test, right = splits.test(), dict.fromkeys(answers, 0)
    parts = range(0, len(test), BATCH_SIZE)
    for start in tqdm(parts, f"evaluate {kind}", leave=False, disable=None):
        part = slice(start, start + BATCH_SIZE)
        seed = run.config.seed + start
        worse = corrupted(test.images[part], kind, splits.mean, splits.std, seed=seed)
        for name, answer in answers.items():
            right[name] += int((answer(worse).argmax(1) == test.labels[part]).sum())
    return {name: 100 * count / len(test) for name, count in right.items()}


def _notes(run: Run, dense_top1: float) -> Iterator[str]:
    """Yield what makes the dense network's accuracy on the test images, in percent, doubtful."""
    if (chance := chance_note(dense_top1, run.problem.splits.test().labels)) is not None:
        yield chance
    search_top1 = (run.records.read("train") or {}).get("val_top1")
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
    return _top1(run, answer_of(run, model)(run.problem.splits.test().images))


def _top1(run: Run, outputs: Tensor) -> float:
    labels = run.problem.splits.test().labels
    check_labels(labels, outputs.shape[1])
    return top1(outputs, labels)
