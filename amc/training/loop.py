"""The training loop: SGD with momentum, warm-up, cosine schedule, average of the weights and distillation.

A training that is killed at any moment and started again with the same arguments continues from its
checkpoint and ends with the same weights bit for bit, on the same kind of device and with the same number
of threads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from amc.data import LabelledImages, Splits
from amc.digest import network_digest, unsaved
from amc.errors import AmcError, SettingError
from amc.progress import progress
from amc.scoring.layout import memory_format_of
from amc.scoring.precision import trains_in_bf16
from amc.scoring.run import logits
from amc.scoring.scores import top1
from amc.seeds import draws_kept, mix, seed_all
from amc.third_party import keep_free_memory, return_free_memory
from amc.training.augment import check_channels
from amc.training.averaging import load
from amc.training.batches import batches
from amc.training.learner import Learner
from amc.training.methods import adapted
from amc.training.pace import Pace
from amc.training.parallel.group import ALONE, Group
from amc.training.parallel.sharding import gathered, sharded
from amc.training.resume import (
    Progress,
    data_key,
    first_batch_size,
    load_checkpoint,
    momentum,
    part,
    restore_buffers,
    restore_momentum,
    save_checkpoint,
    training_key,
)
from amc.training.settings import EpochRecord, Trained, TrainSettings
from amc.training.teaching.cache import CachedTeacher
from amc.training.teaching.hints import Hints
from amc.training.teaching.protocol import NOT_FINITE, Batch, NetworkTeacher, Teacher

EVALUATION_BATCH = 256
"""Images per batch of the validation."""

MERGED_IMAGES = 64
"""Images on which merged adapters are compared with separate ones."""

HINT_IMAGES = 256
"""Calibration images of the least squares that hints start from."""

LOSS_CHECK_STEPS = 16
"""Steps between two checks of the losses; each check makes a GPU wait."""


def train(
    model: nn.Module,
    splits: Splits,
    settings: TrainSettings,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    teacher: nn.Module | Teacher | None = None,
    hint_places: Sequence[str] = (),
    teacher_cache: Path | None = None,
    validation: LabelledImages | None = None,
    checkpoint: Path | None = None,
    origin: Sequence[str] = (),
    group: Group = ALONE,
    on_estimate: Callable[[float], None] | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> Trained:
    """Train ``model`` in place.

    The validation accuracy of every epoch is measured on ``validation``; only ``settings.best`` and
    ``settings.until`` choose anything by it. ``splits.test`` is not used.

    Args:
        model: maps images (N, *splits.input_shape) to logits (N, classes).
        splits: training and validation images.
        settings: how to train.
        seed: of the batches, the augmentation and layers such as dropout.
        device: where to train.
        teacher: what is distilled; required if ``settings`` ask for it, and a network if they ask for hints.
        hint_places: names of modules in both networks whose inputs are compared, as
            ``amc.training.teaching.hints.hint_places`` returns them.
        teacher_cache: folder that keeps the teacher's logits if ``settings.views`` is not 0, for later epochs
            and for other trainings; without one they stay in memory, and only if views recur.
        validation: images on which epochs are judged, by default ``splits.search_val``.
        checkpoint: file to which the state is written after each epoch. Epochs in it are neither run nor
            reported again; a checkpoint of other arguments is overwritten.
        origin: what network and teacher were built from, where their code may read what neither modules nor
            tensors show: with another origin, checkpoint and kept logits are of another training.
        group: the processes that train together; each calls this function with the same arguments. The first
            one writes ``checkpoint`` and ``teacher_cache``, and calls the callbacks.
        on_estimate: called after the first steps with the expected seconds of the training.
        on_epoch: called after each epoch, once its state is written.

    Returns:
        The outcome, with ``model`` in evaluation mode.

    Raises:
        SettingError: distillation without a teacher, weights in parts with a single process, or RandAugment
            for images that are neither grey nor RGB.
        UnavailableError: ``torch.compile`` does not work here.
        AmcError: the network has no parameter to train, returns no logits or too few for the labels, or has
            other classes than the teacher; the loss or a teacher's logits are not finite; an epoch has other
            than ``splits.steps_per_epoch`` batches; or a process of ``group`` has other data, or no image of
            a batch.
    """
    _check_teacher(settings, teacher, hint_places)
    check_channels(settings, splits.input_shape[0])
    if settings.sharded and group.count == 1:
        raise SettingError(
            "sharded=true keeps parts of the weights on several processes, but there is one: expected "
            "processes=2 or more, or several of torchrun"
        )
    device = torch.device(device)
    teacher = teacher if settings.is_taught else None
    teaching = _Teaching(teacher, tuple(hint_places), teacher_cache, tuple(origin))
    # before a method changes what trains
    known = "" if checkpoint is None else network_digest(model, *origin)
    judged = validation or splits.search_val
    example = splits.calibration.images[:MERGED_IMAGES]
    keep_free_memory()
    with adapted(model, settings, example, seed) as method, _repeatable(device):
        training = _Training(
            method.network, splits, settings, seed, device, teaching, judged, checkpoint, known, group
        )
        pace = training.pace(on_estimate)
        with training.bar() as bar, group.together(training.model, sync_norms=settings.sync_norms):
            while not training.ended:
                record = training.epoch(bar, pace)
                if on_epoch is not None and group.writes:
                    on_epoch(record)
        training.finish()
        difference = method.merge()
    model.to(memory_format=torch.contiguous_format)
    model.eval()
    return_free_memory()
    return Trained(
        model, training.progress.finished, training.progress.best_epoch, training.progress.best, difference
    )


def _check_teacher(
    settings: TrainSettings, teacher: nn.Module | Teacher | None, hint_places: Sequence[str]
) -> None:
    """Refuse settings that the teacher cannot serve.

    Raises:
        SettingError: there is no teacher, or hints need features that it does not give.
    """
    if teacher is None and settings.distill_weight > 0:
        raise SettingError(
            f"distill_weight={settings.distill_weight} without a teacher network: expected one, or "
            "distill_weight=0"
        )
    if settings.hint_weight > 0 and not isinstance(teacher, nn.Module):
        raise SettingError(
            f"hint_weight={settings.hint_weight:g} compares features, and there is no teacher network "
            "with the same layers: expected hint_weight=0"
        )
    if settings.hint_weight > 0 and not hint_places:
        raise SettingError(
            f"hint_weight={settings.hint_weight:g}: the network has no layer whose inputs can be compared "
            "(all channels are read after a flatten): expected hint_weight=0"
        )


@dataclass(frozen=True, eq=False)
class _Teaching:
    """Who teaches: see ``train``."""

    teacher: nn.Module | Teacher | None
    hint_places: tuple[str, ...]
    cache: Path | None
    origin: tuple[str, ...]


class _Training:
    """The epochs of one training: its progress, its checkpoint and the weights that are kept."""

    def __init__(
        self,
        model: nn.Module,
        splits: Splits,
        settings: TrainSettings,
        seed: int,
        device: torch.device,
        teaching: _Teaching,
        validation: LabelledImages,
        checkpoint: Path | None,
        known: str,
        group: Group,
    ) -> None:
        self.model, self.splits, self.settings, self.seed, self.device = model, splits, settings, seed, device
        self.validation, self.checkpoint = validation, checkpoint
        self.bf16 = trains_in_bf16(settings.precision, device)
        example = splits.calibration.images[:2]
        self.group, self.example = group, example
        if group.count > 1:
            self._check_alike()
        self.teacher = self._teacher_of(teaching)
        self.key = "" if checkpoint is None else self._key(teaching, known)
        self.whole, layout = model, torch.contiguous_format
        if settings.sharded:
            self.model = model = sharded(model, device)
        else:
            layout = memory_format_of(model.to(device), example)
            model.to(memory_format=layout)
        self.hints = self._hints(teaching)
        self.learner = Learner(
            model,
            settings,
            steps_per_epoch=splits.steps_per_epoch,
            example=example,
            device=device,
            layout=layout,
            bf16=self.bf16,
            teacher=self.teacher,
            hints=self.hints,
            group=group,
        )
        self.average = self.learner.average
        self.best: dict[str, Tensor] = {}
        self.progress = Progress()
        found = None
        if checkpoint is not None and group.writes:
            found = load_checkpoint(checkpoint, self.key)
        # Tensors in parts are gathered by all processes, though one writes.
        self.gathers = bool(settings.sharded and group.first(checkpoint is not None))
        if (found := group.first(found)) is not None:
            self._restore(*found)

    def _check_alike(self) -> None:
        """Refuse processes that would not train one network on one data set: each has built its own.

        Raises:
            AmcError: images, batches or the arithmetic of another process are not those of the first one, or
                a batch has fewer images than there are processes.
        """
        count = self.group.count
        if (rank := self.group.odd(data_key(self.splits, self.seed))) is not None:
            raise AmcError(
                f"the data of training process {rank} of {count} differ from those of the first one: "
                "expected the same images and batches; a data.factory has to draw them by a seed of its own, "
                "and other machines need the same files"
            )
        if (images := first_batch_size(self.splits, self.seed)) < count:
            raise AmcError(
                f"{count} processes train on batches of {images} images: expected at most {images}, as each "
                "works on a part of every batch"
            )
        if (rank := self.group.odd(self.bf16)) is not None:
            raise AmcError(
                f"training process {rank} of {count} and the first one do not both compute in bfloat16: "
                "expected the same precision; write precision=fp32"
            )

    def _teacher_of(self, teaching: _Teaching) -> Teacher | None:
        """Return the teacher; its logits are kept where they serve again, and hints need no features."""
        teacher, settings = teaching.teacher, self.settings
        if isinstance(teacher, nn.Module):
            teacher = NetworkTeacher(
                teacher, self.device, self.example, bf16=self.bf16, origin=teaching.origin
            )
        shared = teaching.cache is not None and settings.views > 0
        if teacher is None or settings.hint_weight > 0 or not (settings.views_recur or shared):
            return teacher
        about = {name: getattr(settings, name) for name in ("randaugment", "erasing", "mixup", "cutmix")}
        about |= {"seed": self.seed, "data": self.splits.fingerprint, "part": self.group.rank}
        about |= {"processes": self.group.count, "device": self.device.type, "bf16": self.bf16}
        if self.splits.train_digest is not None:
            about["images"] = self.splits.train_digest()
        folder = teaching.cache if self.group.writes else None
        return CachedTeacher(teacher, about, self.splits.steps_per_epoch, folder)

    def _hints(self, teaching: _Teaching) -> Hints | None:
        if self.settings.hint_weight == 0:
            return None
        assert isinstance(self.teacher, NetworkTeacher)
        images = self.splits.calibration.images[:HINT_IMAGES].to(self.device)
        fixed = self.settings.hint_maps == "fixed"
        return Hints(self.model, self.teacher.network, teaching.hint_places, images, fixed=fixed)

    @property
    def ended(self) -> bool:
        """Whether all epochs are run, or the validation accuracy is met."""
        return self.progress.ended(self.settings)

    def pace(self, on_estimate: Callable[[float], None] | None) -> Pace:
        """Return the measure of the epochs to come."""
        steps, finished = self.splits.steps_per_epoch, self.progress.finished
        kept = self.teacher if isinstance(self.teacher, CachedTeacher) else None
        return Pace(
            steps,
            self.settings.epochs - finished,
            on_estimate,
            asking=max(0, min(self.settings.views, self.settings.epochs) - finished),
            asked=(lambda: kept.seconds) if kept is not None else float,
        )

    def bar(self) -> tqdm:
        """Return the progress bar over the batches of all epochs."""
        steps = self.splits.steps_per_epoch
        done = self.progress.finished * steps
        return progress(self.settings.epochs * steps, "training", "batch", initial=done)

    def epoch(self, bar: tqdm, pace: Pace) -> EpochRecord:
        """Run the next epoch, save the state and return the record."""
        started, epoch = time.perf_counter(), self.progress.finished
        own = (self.group.rank,) if self.group.rank else ()
        seed_all(mix(self.seed, epoch, "train", *own))  # for layers such as dropout, whatever they draw with
        losses: list[float] = []
        pending: list[Tensor] = []
        self.model.train()
        first = epoch * self.splits.steps_per_epoch
        for step, batch in enumerate(self._batches(epoch), first):
            pending.append(self.learner.step(step, batch))
            pace.step()
            bar.update()
            if len(pending) == LOSS_CHECK_STEPS:
                losses += self._checked(pending, step, bar)
                pending = []
        if pending:
            losses += self._checked(pending, step, bar)
        accuracy = self._validate()
        writes = self.checkpoint is not None and self.group.writes
        state = self._state() if writes or self.gathers else {}
        if self.checkpoint is not None and writes:
            save_checkpoint(self.checkpoint, self.key, state, self.progress, seed=self.seed)
        seconds = time.perf_counter() - started
        return EpochRecord(
            epoch=epoch + 1,
            epochs=self.settings.epochs,
            loss=sum(losses) / len(losses),
            lr=self.learner.optimizer.param_groups[0]["lr"],
            val_top1=accuracy,
            seconds=seconds,
            seconds_left=0.0 if self.ended else pace.epoch(seconds),
        )

    def _batches(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, as many as the data set has said.

        The learning rate, sums of gradients and kept logits rely on their number.

        Raises:
            AmcError: there are more or fewer.
        """
        expected, count = self.splits.steps_per_epoch, 0
        for batch in batches(self.splits, self.settings, epoch, self.seed, self.group.part):
            count += 1
            if count > expected:
                break
            yield batch
        if count != expected:
            more = " or more" if count > expected else ""
            raise AmcError(
                f"epoch {epoch + 1} has {count} batches{more}, Splits.steps_per_epoch is {expected}: "
                "expected as many as Splits.train_batches yields in every epoch"
            )

    def finish(self) -> None:
        """Give the network the weights that are kept."""
        if self.hints is not None:
            self.hints.close()
        if self.best:
            load(self.model, self.best)
        elif self.average is not None:
            load(self.model, self.average.tensors)
        if self.whole is not self.model:
            load(self.whole, gathered(self.model.state_dict()))
            restore_buffers(self.whole, unsaved(self.model))

    def _validate(self) -> float:
        """Return the validation accuracy in percent, and note the epoch as finished."""
        with self.average.shown() if self.average is not None else nullcontext():
            found = logits(self.model, self.validation.images, EVALUATION_BATCH)
            # that of the first process, as all have to end at the same epoch
            accuracy = self.group.first(top1(found, self.validation.labels))
            updates = self.average.updates if self.average is not None else 0
            self.progress = self.progress.after(accuracy, updates)
            if self.settings.best and self.progress.best_epoch == self.progress.finished:
                self.best = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        return accuracy

    def _checked(self, pending: list[Tensor], last: int, bar: tqdm) -> list[float]:
        """Return the losses of the steps up to ``last`` as numbers; fail if one is not finite."""
        values = (self.group.sum(torch.stack(pending)) / self.group.count).tolist()
        for step, value in enumerate(values, last - len(values) + 2):
            if not math.isfinite(value):
                raise AmcError(
                    f"the training loss is {value} at step {step} of {bar.total}, expected a finite number: "
                    f"{self._cause()}"
                )
        best = f"{self.progress.best:.1f}%"
        bar.set_postfix(loss=f"{values[-1]:.3f}", best_val=best, refresh=False)
        return values

    def _cause(self) -> str:
        """Return why a loss is probably not finite."""
        if not self.learner.taught_finite():
            return f"the teacher has returned NaN or infinity; {NOT_FINITE}"
        lr = self.settings.lr
        return f"the learning rate {lr:g} is probably too high, try {lr / 10:g}"

    def _state(self) -> dict[str, Tensor]:
        """Return all tensors that the next epoch depends on."""
        optimizer = self.learner.optimizer
        parts = {"model": self.model.state_dict(), "momentum": momentum(self.model, optimizer)}
        if self.average is not None:
            parts["ema"] = self.average.tensors
        if self.hints is not None:
            parts["hints"] = self.hints.state_dict()
            parts["hint_momentum"] = momentum(self.hints, optimizer)
        parts["best"] = self.best
        parts["unsaved"] = unsaved(self.model)
        return {
            f"{kind}/{name}": tensor for kind, own in parts.items() for name, tensor in gathered(own).items()
        }

    def _restore(self, progress: Progress, saved: Mapping[str, Tensor]) -> None:
        self.progress = progress
        load(self.model, part(saved, "model/"))
        restore_momentum(self.model, self.learner.optimizer, part(saved, "momentum/"))
        if self.average is not None:
            self.average.restore(part(saved, "ema/"), progress.updates)
        if self.hints is not None:
            load(self.hints, part(saved, "hints/"))
            restore_momentum(self.hints, self.learner.optimizer, part(saved, "hint_momentum/"))
        self.best = part(saved, "best/")
        restore_buffers(self.model, part(saved, "unsaved/"))

    def _key(self, teaching: _Teaching, known: str) -> str:
        return training_key(
            self.settings,
            self.splits,
            self.validation,
            known,
            self.teacher.identity if self.teacher is not None else None,
            seed=self.seed,
            device=self.device,
            bf16=self.bf16,
            hint_places=teaching.hint_places,
            processes=self.group.count,
        )


@contextmanager
def _repeatable(device: torch.device) -> Iterator[None]:
    """Make cuDNN deterministic, and restore the caller's random states afterwards."""
    backend = torch.backends.cudnn
    before = backend.deterministic, backend.benchmark
    with draws_kept([device] if device.type == "cuda" else []):
        backend.deterministic, backend.benchmark = True, False
        try:
            yield
        finally:
            backend.deterministic, backend.benchmark = before
