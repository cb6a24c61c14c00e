"""Stage ``finetune``: the pruned network is trained on, taught by the dense one where that is configured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from amc.models.checkpoint import save_safetensors
from amc.scoring.run import logits
from amc.scoring.scores import top1
from amc.training.loop import train

if TYPE_CHECKING:
    from experiments.run.run import Run


def run(run: Run) -> dict[str, Any]:
    """Write the fine-tuned ``model.safetensors``."""
    model = run.pruned(run.folder.pruned)
    facts = finetune(run, model, run.folder.checkpoint("finetune"), "finetune")
    run.folder.forget("evaluate", "export", "benchmark", "serve")
    save_safetensors(model.cpu().state_dict(), run.folder.model)
    print(f"finetune: {facts['val_top1']:.2f}% on search_val after {facts['epochs']} epochs")
    return facts


def finetune(run: Run, model: nn.Module, checkpoint: Path, prefix: str) -> dict[str, Any]:
    """Train ``model`` in place under the run's fine-tuning settings."""
    settings = run.train_settings(run.config.finetune)
    train(
        model,
        run.problem.splits,
        settings,
        seed=run.config.seed,
        device=run.problem.device,
        teacher=run.problem.dense if settings.distill_weight > 0 else None,
        checkpoint=checkpoint,
        on_epoch=run.log_epochs(prefix),
    )
    model.cpu()
    images = run.problem.splits.search_val
    return {"epochs": settings.epochs, "val_top1": top1(logits(model, images.images, 256), images.labels)}
