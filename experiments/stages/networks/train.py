"""Stage ``train``: the dense network, trained here or taken from a checkpoint."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from amc.models.state_files import save_safetensors
from amc.scoring.run import logits
from amc.scoring.scores import top1
from experiments.run.folder import PICTURES, PLACES
from experiments.run.problem.weights import STARTS_TRAINED
from experiments.stages.networks.fitting import fit

if TYPE_CHECKING:
    from experiments.run.run import Run

CHANCE_DEVIATIONS = 2
"""Standard deviations of the accuracy above which a network is better than chance."""


def run(run: Run) -> dict[str, Any]:
    """Write ``dense.safetensors``; a network that comes with weights is only judged."""
    if not run.problem.weights.given:
        model = untrained(run)
        settings = run.train_settings(run.config.train)
        fit(run, model, settings, run.folder.checkpoint("train"), "train", run.config.train, dense=None)
        _keep_pictures(run)
        run.problem.weights.save(model.cpu())
        run.problem.forget_dense()  # an earlier stage may have loaded other weights
    else:
        run.folder.trained_on.unlink(missing_ok=True)
    if not run.problem.graph.classifies:
        print(f"train: dense {run.config.model.name} returns no logits, so it has no top-1 accuracy")
        run.problem.keep_dense()
        return {"trained_here": False, "val_top1": None}
    run.problem.keep_dense()
    images = run.problem.splits.search_val
    val_top1 = top1(logits(run.problem.dense, images.images, 256), images.labels)
    print(f"train: dense {run.config.model.name} has {val_top1:.2f}% on search_val")
    if (note := chance_note(val_top1, images.labels)) is not None:
        print(f"train: {note}")
    facts = {"trained_here": not run.problem.weights.given, "val_top1": val_top1}
    return facts if run.problem.weights.given else {**facts, **_about_training(run)}


def _about_training(run: Run) -> dict[str, Any]:
    """Return what a training here knows of the held-out images, for the checks of later calls."""
    facts: dict[str, Any] = {"held_out": run.problem.splits.held_out}
    if run.config.model.start is not None:
        facts[STARTS_TRAINED] = run.problem.starts_trained
    return facts


def chance_note(accuracy: float, labels: Tensor) -> str | None:
    """Return a line about an ``accuracy``, in percent, that is no better than chance, or None.

    Args:
        labels: (N,) int64 of the images.
    """
    share = labels.bincount().max().item() / len(labels)
    if accuracy / 100 > share + CHANCE_DEVIATIONS * math.sqrt(share * (1 - share) / len(labels)):
        return None
    return (
        f"{accuracy:.2f}% is chance level ({100 * share:.2f}% of the images are of one class); likely cause: "
        "a learning rate too high, too few epochs, or weights of other classes or another normalisation"
    )


def _keep_pictures(run: Run) -> None:
    """Write which pictures the network was trained on, where that is known, for the checks of later calls."""
    if (pictures := run.problem.splits.pictures) is None:
        run.folder.trained_on.unlink(missing_ok=True)
    else:
        known = {PICTURES: pictures.keys("train"), PLACES: pictures.places("train")}
        save_safetensors(known, run.folder.trained_on)


def untrained(run: Run) -> nn.Module:
    """Build what is trained: with initial weights, or those of ``model.start`` as far as they fit."""
    model = run.problem.fresh_model()
    if (start := run.config.model.start) is not None:
        new = run.problem.weights.start(model)
        print(f"train: starts from {start}" + (f"; new are {', '.join(new)}" if new else ""))
    return model
