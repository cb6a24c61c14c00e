"""A training of a stage: who teaches, which images judge, and what the user is told while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from amc.notes import note_once
from amc.training.loop import train
from amc.training.pace import spoken
from amc.training.settings import EpochRecord, Trained, TrainSettings

if TYPE_CHECKING:
    from experiments.run.run import Run

TOLD_AFTER = 60.0
"""Seconds: shorter trainings are not announced, and epochs are told no more often."""


def fit(
    run: Run, model: nn.Module, settings: TrainSettings, checkpoint: Path, prefix: str, *, taught: bool
) -> Trained:
    """Train ``model`` in place on the run's images.

    Epochs are judged on ``data.unseen`` images where the validation decides anything and there are such
    images: the search has chosen the network by those of search_val.

    Args:
        checkpoint: file of the training's state.
        prefix: names the training in metrics and messages.
        taught: whether the dense network teaches.
    """
    splits = run.problem.splits
    if settings.best and not run.problem.validates_honestly:
        note_once(
            f"{prefix}: the weights of the last epoch are kept, not the best: the dense network may have "
            "been trained on the images that would judge"
        )
        settings = replace(settings, best=False)
    return train(
        model,
        splits,
        settings,
        seed=run.config.seed,
        device=run.problem.device,
        teacher=run.problem.dense if taught else None,
        validation=splits.unseen if settings.judges else None,
        checkpoint=checkpoint,
        on_estimate=_announcing(prefix, settings.epochs),
        on_epoch=_telling(run, prefix),
    )


def _announcing(prefix: str, epochs: int) -> Callable[[float], None]:
    """Return a callback that prints how long a training will take, unless it is short."""

    def announce(seconds: float) -> None:
        if seconds > TOLD_AFTER:
            print(f"{prefix}: {epochs} epochs; about {spoken(seconds)} to go", flush=True)

    return announce


def _telling(run: Run, prefix: str) -> Callable[[EpochRecord], None]:
    """Return a callback that sends epochs to the tracker and prints one now and then."""
    last = time.perf_counter()

    def tell(record: EpochRecord) -> None:
        nonlocal last
        metrics = {f"{prefix}/loss": record.loss, f"{prefix}/val_top1": record.val_top1}
        run.tracker.log(metrics, record.epoch)
        if (now := time.perf_counter()) - last >= TOLD_AFTER:
            last = now
            print(
                f"{prefix}: epoch {record.epoch} of {record.epochs}, {record.val_top1:.2f}% on validation "
                f"images, {spoken(record.seconds_left)} left",
                flush=True,
            )

    return tell
