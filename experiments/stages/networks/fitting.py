"""A training of a stage: who teaches, which images judge, and what the user is told while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from amc.digest import network_digest
from amc.notes import note_once
from amc.scoring.precision import trains_in_bf16
from amc.training.loop import train
from amc.training.pace import spoken
from amc.training.parallel.group import ALONE, Group
from amc.training.resume import known_progress, training_key
from amc.training.settings import EpochRecord, Trained, TrainSettings
from experiments.config.sections.library import TrainConfig
from experiments.stages.networks.teaching import source_of
from experiments.stages.networks.team import Job, own_device, team

if TYPE_CHECKING:
    from experiments.run.run import Run

TEACHER_CACHE = "teacher"
"""Folder in the run folder that keeps the teacher's logits."""
TOLD_AFTER = 60.0
"""Seconds: shorter trainings are not announced, and epochs are told no more often."""


def fit(
    run: Run,
    model: nn.Module,
    settings: TrainSettings,
    checkpoint: Path,
    prefix: str,
    config: TrainConfig,
    *,
    dense: nn.Module | None,
    alone: bool = False,
) -> Trained:
    """Train ``model`` in place on the run's images.

    Epochs are judged on ``data.unseen`` images where the validation decides anything and there are such
    images: the search has chosen the network by those of search_val.

    Args:
        checkpoint: file of the training's state.
        prefix: names the training in metrics and messages.
        config: the section that names the teacher and the number of processes.
        dense: the network that teaches unless ``config`` names another teacher.
        alone: train in this process, whatever ``config`` and torchrun say.
    """
    problem, seed = run.problem, run.config.seed
    honest = _honest(run, settings)
    if honest != settings:
        note_once(
            f"{prefix}: the weights of the last epoch are kept, not the best: the dense network, or its "
            "start, may have been trained on the images that would judge"
        )
        settings = honest
    if config.teacher_cache and settings.is_taught and (reason := _unkept(settings)) is not None:
        note_once(f"{prefix}: teacher_cache={config.teacher_cache} is not used: {reason}")
    source = source_of(run, config, settings, dense)
    on_unseen, kind = settings.judges, problem.device.type
    cache = Path(config.teacher_cache) if config.teacher_cache else None
    if cache is None and settings.views_recur:
        cache = run.folder.path / TEACHER_CACHE

    def job() -> Job:
        # the cores are shared, unless the user has said how many threads a process has
        shared = config.processes if run.config.threads is None and kind == "cpu" else 1
        threads = max(1, torch.get_num_threads() // shared)
        return Job(model, settings, seed, problem.data_options, source, on_unseen, kind, threads)

    together: AbstractContextManager[Group] = nullcontext(ALONE) if alone else team(config.processes, job)
    epochs: list[int] = []
    with together as group:
        trained = train(
            model,
            problem.splits,
            settings,
            seed=seed,
            device=problem.device if group.count == 1 else own_device(kind),
            teacher=source.opened(problem.splits, settings, seed),
            hint_places=source.places,
            teacher_cache=cache,
            validation=problem.splits.unseen if on_unseen else None,
            checkpoint=checkpoint,
            origin=problem.origin,
            group=group,
            on_estimate=_announcing(prefix, settings.epochs),
            on_epoch=_telling(run, prefix, epochs),
        )
        if group.writes and len(epochs) < trained.epochs:
            run.looked_up = True  # the first ones are in the checkpoint
    if settings.method == "lora":
        moved = f"{trained.merge_difference:.1g}"
        print(f"{prefix}: the adapters are merged, which changes outputs by {moved} of the largest")
    return trained


def epochs_to_go(
    run: Run, model: nn.Module, settings: TrainSettings, checkpoint: Path, config: TrainConfig
) -> int:
    """Return how many epochs ``fit`` would run without a network as the teacher; nothing is trained.

    Raises:
        AmcError: the teacher cannot teach this training.
    """
    problem, seed = run.problem, run.config.seed
    settings = _honest(run, settings)
    teacher = source_of(run, config, settings, None).opened(problem.splits, settings, seed)
    validation = problem.splits.unseen if settings.judges else None
    key = training_key(
        settings,
        problem.splits,
        validation or problem.splits.search_val,
        network_digest(model, *problem.origin),
        None if teacher is None or isinstance(teacher, nn.Module) else teacher.identity,
        seed=seed,
        device=problem.device,
        bf16=trains_in_bf16(settings.precision, problem.device),
        processes=config.processes,
    )
    known = known_progress(checkpoint, key)
    return 0 if known.ended(settings) else settings.epochs - known.finished


def _honest(run: Run, settings: TrainSettings) -> TrainSettings:
    """Return the settings; the last epoch is kept where the dense network may know the images that judge."""
    if settings.best and not run.problem.validates_honestly:
        return replace(settings, best=False)
    return settings


def _unkept(settings: TrainSettings) -> str | None:
    """Return why a teacher's logits cannot be kept, or None if they can."""
    if settings.hint_weight > 0:
        return "hints compare features, so that the teacher runs at every step"
    if settings.views == 0:
        return "each epoch has other images; views=10 repeats those of ten epochs"
    return None


def _announcing(prefix: str, epochs: int) -> Callable[[float], None]:
    """Return a callback that prints how long a training will take, unless it is short."""

    def announce(seconds: float) -> None:
        if seconds > TOLD_AFTER:
            print(f"{prefix}: {epochs} epochs; about {spoken(seconds)} to go", flush=True)

    return announce


def _telling(run: Run, prefix: str, epochs: list[int]) -> Callable[[EpochRecord], None]:
    """Return a callback that sends epochs to the tracker, prints one now and then, and lists all."""
    last = time.perf_counter()

    def tell(record: EpochRecord) -> None:
        nonlocal last
        metrics = {f"{prefix}/loss": record.loss, f"{prefix}/val_top1": record.val_top1}
        run.tracker.log(metrics, record.epoch)
        epochs.append(record.epoch)
        if (now := time.perf_counter()) - last >= TOLD_AFTER:
            last = now
            print(
                f"{prefix}: epoch {record.epoch} of {record.epochs}, {record.val_top1:.2f}% on validation "
                f"images, {spoken(record.seconds_left)} left",
                flush=True,
            )

    return tell
