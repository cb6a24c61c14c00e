"""Stage ``finetune``: the pruned network is trained on, taught by the dense one where that is configured."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from amc.models.state_files import save_safetensors
from amc.scoring.run import logits
from amc.scoring.scores import top1
from experiments.stages.networks.fitting import fit

if TYPE_CHECKING:
    from amc.data import LabelledImages
    from experiments.run.run import Run

FLATTERY = 3.0
"""Points by which a trained network may be worse on search_val, if the dense one may know these images."""


def run(run: Run) -> dict[str, Any]:
    """Write the better of the fine-tuned and the pruned network to ``model.safetensors``."""
    model = run.pruned(run.folder.pruned)
    facts = finetune(run, model, run.folder.checkpoint("finetune"), "finetune")
    run.folder.forget("quantize", "evaluate", "export", "benchmark", "serve")
    save_safetensors(model.cpu().state_dict(), run.folder.model)
    after, before, worse = facts["finetuned_top1"], facts["pruned_top1"], facts["kept"] == "pruned"
    print(f"finetune: {described(after, before, facts['epochs'], worse=worse)}")
    return facts


def described(after: float, before: float, epochs: int, *, worse: bool) -> str:
    """Return both accuracies of a training on search_val in one line, and which network is kept.

    Args:
        after, before: the accuracies, in percent.
        epochs: length of the training.
        worse: see ``is_worse``.
    """
    kept = ""
    if worse:
        kept = ": the network before is better and is kept"
    elif after < before:
        kept = ": the new one is kept, as the dense network may have been trained on search_val"
    return f"{after:.2f}% on search_val after {epochs} epochs, {before:.2f}% before{kept}"


def is_worse(run: Run, after: float, before: float) -> bool:
    """Whether a trained network is worse on search_val than before, both in percent; see ``FLATTERY``."""
    return after < before - (0.0 if run.problem.validates_honestly else FLATTERY)


def finetune(run: Run, model: nn.Module, checkpoint: Path, prefix: str) -> dict[str, Any]:
    """Train ``model`` in place under the run's fine-tuning settings; a worse network than before is undone.

    The two are compared on search_val, which is held out of the training images. A dense network that came
    with weights may have been trained on them, which flatters what was pruned from it: ``FLATTERY``.
    """
    settings = run.train_settings(run.config.finetune)
    before, pruned_top1 = copy.deepcopy(model.state_dict()), val_top1(run, model)
    trained = fit(
        run, model, settings, checkpoint, prefix, run.config.finetune, dense=run.problem.original.dense
    )
    finetuned_top1 = val_top1(run, model.cpu())
    if worse := is_worse(run, finetuned_top1, pruned_top1):
        model.load_state_dict(before)
    return {
        "epochs": trained.epochs,
        "val_top1": pruned_top1 if worse else finetuned_top1,
        "pruned_top1": pruned_top1,
        "finetuned_top1": finetuned_top1,
        "kept": "pruned" if worse else "finetuned",
    }


def val_top1(run: Run, model: nn.Module) -> float:
    """Return the accuracy of a network on search_val, in percent."""
    return top1_on(run.problem.splits.search_val, model)


def top1_on(images: LabelledImages, model: nn.Module) -> float:
    """Return the accuracy of a network on images, in percent."""
    return top1(logits(model, images.images, 256), images.labels)
