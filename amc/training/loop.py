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
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from amc.data import LabelledImages, Splits, check_labels
from amc.errors import AmcError, SettingError
from amc.progress import progress
from amc.scoring.layout import memory_format_of
from amc.scoring.precision import computes_bf16
from amc.scoring.run import as_logits, logits
from amc.scoring.scores import top1
from amc.seeds import mix
from amc.third_party import keep_free_memory, return_free_memory
from amc.training.augment import cross_entropy
from amc.training.averaging import Average, load
from amc.training.batches import batches
from amc.training.compiling import compiled
from amc.training.methods import adapted
from amc.training.pace import Pace
from amc.training.parallel.group import ALONE, Group
from amc.training.parallel.sharding import gathered, sharded
from amc.training.parts import PartedBatch
from amc.training.resume import (
    Progress,
    load_checkpoint,
    momentum,
    part,
    restore_momentum,
    save_checkpoint,
    training_key,
)
from amc.training.settings import EpochRecord, Trained, TrainSettings, learning_rate
from amc.training.teaching.cache import CachedTeacher
from amc.training.teaching.hints import Hints
from amc.training.teaching.protocol import Batch, NetworkTeacher, Teacher, distillation_loss

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
        teacher_cache: folder that keeps the teacher's logits if ``settings.views`` makes them recur; without
            one they stay in memory.
        validation: images on which epochs are judged, by default ``splits.search_val``.
        checkpoint: file to which the state is written after each epoch. Epochs in it are neither run nor
            reported again; a checkpoint of other arguments is overwritten.
        group: the processes that train together; each calls this function with the same arguments. The first
            one writes ``checkpoint`` and ``teacher_cache``, and calls the callbacks.
        on_estimate: called after the first steps with the expected seconds of the training.
        on_epoch: called after each epoch, once its state is written.

    Returns:
        The outcome, with ``model`` in evaluation mode.

    Raises:
        SettingError: distillation without a teacher, or weights in parts with a single process.
        UnavailableError: ``torch.compile`` does not work here.
        AmcError: the network has no parameter to train, returns no logits or too few for the labels, or has
            other classes than the teacher; or the loss is not finite.
    """
    _check_teacher(settings, teacher, hint_places)
    if settings.sharded and group.count == 1:
        raise SettingError(
            "sharded=true keeps parts of the weights on several processes, but there is one: expected "
            "processes=2 or more, or several of torchrun"
        )
    device = torch.device(device)
    teaching = _Teaching(teacher if settings.is_taught else None, tuple(hint_places), teacher_cache)
    judged = validation or splits.search_val
    example = splits.calibration.images[:MERGED_IMAGES]
    keep_free_memory()
    with adapted(model, settings, example, seed) as method, _repeatable(device):
        run = _Run(method.network, splits, settings, seed, device, teaching, judged, checkpoint, group)
        pace = Pace(splits.steps_per_epoch, settings.epochs - run.progress.finished, on_estimate)
        with run.bar() as bar, group.together(run.model, sync_norms=settings.sync_norms):
            while not run.ended:
                record = run.epoch(bar, pace)
                if on_epoch is not None and group.writes:
                    on_epoch(record)
        run.finish()
        difference = method.merge()
    model.to(memory_format=torch.contiguous_format).eval()
    return_free_memory()
    return Trained(model, run.progress.finished, run.progress.best_epoch, run.progress.best, difference)


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
    if settings.hint_weight > 0 and not (isinstance(teacher, nn.Module) and hint_places):
        raise SettingError(
            f"hint_weight={settings.hint_weight:g} compares features, and there is no teacher network "
            "with the same layers: expected hint_weight=0"
        )


@dataclass(frozen=True, eq=False)
class _Teaching:
    """Who teaches: see ``train``."""

    teacher: nn.Module | Teacher | None
    hint_places: tuple[str, ...]
    cache: Path | None


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Return the optimiser's groups: ``weight_decay`` for weights, none for norm layers and biases (1-D)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = (
        ([parameter for parameter in trained if parameter.ndim > 1], weight_decay),
        ([parameter for parameter in trained if parameter.ndim <= 1], 0.0),
    )
    return [{"params": parameters, "weight_decay": decay} for parameters, decay in groups if parameters]


class _Run:
    """The state of one training: model, optimiser, averages and progress."""

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
        group: Group,
    ) -> None:
        self.model, self.splits, self.settings, self.seed, self.device = model, splits, settings, seed, device
        self.validation, self.checkpoint = validation, checkpoint
        self.bf16 = settings.precision == "bf16" or (settings.precision == "auto" and computes_bf16(device))
        example = splits.calibration.images[:2]
        self.group, self.example = group, example
        self.teacher = self._teacher_of(teaching)
        self.key = "" if checkpoint is None else self._key(teaching)
        self.whole, self.layout = model, torch.contiguous_format
        if settings.sharded:
            self.model = model = sharded(model, device)
        else:
            self.layout = memory_format_of(model.to(device), example)
            model.to(memory_format=self.layout)
        groups = parameter_groups(model, settings.weight_decay)
        if not groups:
            raise AmcError("the network has no parameter to train, expected at least one with requires_grad")
        self.hints = self._hints(teaching)
        if self.hints is not None and settings.hint_maps == "trained":
            groups.append({"params": list(self.hints.parameters()), "weight_decay": 0.0})
        self.optimizer = torch.optim.SGD(
            groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov
        )
        self.parts = PartedBatch(model, groups, device)
        self.average = Average(model, settings.ema) if settings.ema else None
        self.best: dict[str, Tensor] = {}
        self.progress = Progress()
        self.call = group.wrapped(model, sync_norms=settings.sync_norms)
        if settings.compile:
            self.call = compiled(self.call)
        found = None
        if checkpoint is not None and group.writes:
            found = load_checkpoint(checkpoint, self.key)
        # Tensors in parts are gathered by all processes, though one writes.
        self.gathers = bool(settings.sharded and group.first(checkpoint is not None))
        if (found := group.first(found)) is not None:
            self._restore(*found)

    def _teacher_of(self, teaching: _Teaching) -> Teacher | None:
        """Return the teacher; its logits are kept where views recur and hints do not need its features."""
        teacher, settings = teaching.teacher, self.settings
        if isinstance(teacher, nn.Module):
            teacher = NetworkTeacher(teacher, self.device, self.example, bf16=self.bf16)
        if teacher is None or settings.hint_weight > 0 or not 0 < settings.views < settings.epochs:
            return teacher
        names = ("views", "randaugment", "erasing", "mixup", "cutmix")
        about = {name: getattr(settings, name) for name in names if name != "views"}
        about |= {"seed": self.seed, "data": self.splits.fingerprint, "part": self.group.rank}
        about |= {"processes": self.group.count, "device": self.device.type}
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
        until = self.settings.until
        met = until is not None and self.progress.best_epoch > 0 and self.progress.best / 100 >= until
        return met or self.progress.finished >= self.settings.epochs

    def bar(self) -> tqdm:
        """Return the progress bar over the batches of all epochs."""
        steps = self.splits.steps_per_epoch
        done = self.progress.finished * steps
        return progress(self.settings.epochs * steps, "training", "batch", initial=done)

    def epoch(self, bar: tqdm, pace: Pace) -> EpochRecord:
        """Run the next epoch, save the state and return the record."""
        started, epoch = time.perf_counter(), self.progress.finished
        own = (self.group.rank,) if self.group.rank else ()
        torch.manual_seed(mix(self.seed, epoch, "train", *own))  # for layers such as dropout
        losses: list[float] = []
        pending: list[Tensor] = []
        self.model.train()
        first = epoch * self.splits.steps_per_epoch
        shown = batches(self.splits, self.settings, epoch, self.seed, self.group.part)
        for step, batch in enumerate(shown, first):
            pending.append(self._step(step, batch))
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
            lr=self.optimizer.param_groups[0]["lr"],
            val_top1=accuracy,
            seconds=seconds,
            seconds_left=0.0 if self.ended else pace.epoch(seconds),
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

    def _validate(self) -> float:
        """Return the validation accuracy in percent, and note the epoch as finished."""
        shown = self.average.shown() if self.average is not None else nullcontext()
        with shown:
            found = logits(self.model, self.validation.images, EVALUATION_BATCH)
            # that of the first process, as all have to end at the same epoch
            accuracy = self.group.first(top1(found, self.validation.labels))
            updates = self.average.updates if self.average is not None else 0
            self.progress = self.progress.after(accuracy, updates)
            if self.settings.best and self.progress.best_epoch == self.progress.finished:
                self.best = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        return accuracy

    def _step(self, step: int, batch: Batch) -> Tensor:
        """Process batch number ``step`` (from 0) of the training; return its loss on the device."""
        first, last, count = self._turn(batch.index)
        with self.group.collecting(self.call, last=last):
            return self._learn(step, batch, first, last, count)

    def _learn(self, step: int, batch: Batch, first: bool, last: bool, count: int) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.settings, self.splits.steps_per_epoch)
        if self.group.count > 1:
            if first:
                self.optimizer.zero_grad(set_to_none=True)
            whole = slice(0, len(batch.labels))
            loss = self._backward(batch, count, whole, self._share(len(batch.labels)))
        else:
            backward = partial(self._backward, batch, count)
            loss = self.parts.backward(len(batch.labels), backward, keep=not first)
        if last:
            self._update()
        return loss

    def _backward(self, batch: Batch, count: int, own: slice, share: float) -> Tensor:
        """Add the gradients of some images of a batch.

        Args:
            count: number of batches of an update.
            own: the images of the batch.
            share: what their mean loss counts for.

        Returns:
            Their loss times ``share`` (a scalar, detached), on the device.
        """
        part = batch
        if own != slice(0, len(batch.labels)):
            part = replace(
                batch, images=batch.images[own], labels=batch.labels[own], targets=batch.targets[own]
            )
        images = part.images.to(self.device, memory_format=self.layout)
        with self._autocast():
            # with a copy where the teacher needs the images too: a network may work in place
            given = images if self.teacher is None else images.clone()
            output = as_logits(self.call(given)).float()
        check_labels(part.labels, output.shape[1])
        loss = share * self._loss(output, part, lambda: self._taught(batch, part, own, images))
        (loss if count == 1 else loss / count).backward()
        return loss.detach()

    def _taught(self, batch: Batch, part: Batch, own: slice, images: Tensor) -> Tensor:
        """Return the teacher's logits for ``part``, the images ``own`` of ``batch``."""
        assert self.teacher is not None
        if part is batch or isinstance(self.teacher, NetworkTeacher):
            return self.teacher.logits(part, images)
        return self.teacher.logits(batch, batch.images.to(self.device, memory_format=self.layout))[own]

    def _share(self, own: int) -> float:
        """Return the factor that makes the mean of the processes' losses that of the whole batch."""
        whole = self.group.sum(torch.tensor([float(own)], device=self.device))
        return own * self.group.count / float(whole)

    def _turn(self, index: int) -> tuple[bool, bool, int]:
        """Return whether a batch is the first and the last before an update, and their number.

        The last update of an epoch may have fewer batches than the others.
        """
        position, steps = index % self.settings.accumulate, self.splits.steps_per_epoch
        count = min(self.settings.accumulate, steps - (index - position))
        return position == 0, position == count - 1, count

    def _update(self) -> None:
        if self.hints is not None and self.group.count > 1:
            for weights in self.hints.parameters():
                if weights.grad is not None:
                    weights.grad = self.group.sum(weights.grad) / self.group.count
        if self.settings.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()

    def _loss(self, output: Tensor, batch: Batch, taught: Callable[[], Tensor]) -> Tensor:
        """Return the loss of a batch; ``taught`` gives the teacher's logits for it."""
        smoothing, weight = self.settings.label_smoothing, self.settings.distill_weight
        loss = cross_entropy(output, batch.targets.to(self.device), smoothing)
        if self.teacher is None:
            return loss
        target = taught()
        if self.hints is not None:
            loss = loss + self.settings.hint_weight * self.hints.loss()
        if weight == 0:
            return loss
        if target.shape != output.shape:
            raise AmcError(
                f"the teacher has {target.shape[1]} outputs, the network {output.shape[1]}: expected the "
                "same classes"
            )
        distilled = distillation_loss(output, target, self.settings.distill_temperature)
        return (1 - weight) * loss + weight * distilled

    def _checked(self, pending: list[Tensor], last: int, bar: tqdm) -> list[float]:
        """Return the losses of the steps up to ``last`` as numbers; fail if one is not finite."""
        values = (self.group.sum(torch.stack(pending)) / self.group.count).tolist()
        for step, value in enumerate(values, last - len(values) + 2):
            if not math.isfinite(value):
                raise AmcError(
                    f"the training loss is {value} at step {step} of {bar.total}, expected a finite number: "
                    f"the learning rate {self.settings.lr:g} is probably too high, try "
                    f"{self.settings.lr / 10:g}"
                )
        best = f"{self.progress.best:.1f}%"
        bar.set_postfix(loss=f"{values[-1]:.3f}", best_val=best, refresh=False)
        return values

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def _state(self) -> dict[str, Tensor]:
        """Return all tensors that the next epoch depends on."""
        parts = {"model": self.model.state_dict(), "momentum": momentum(self.model, self.optimizer)}
        if self.average is not None:
            parts["ema"] = self.average.tensors
        if self.hints is not None:
            parts["hints"] = self.hints.state_dict()
            parts["hint_momentum"] = momentum(self.hints, self.optimizer)
        parts["best"] = self.best
        return {
            f"{kind}/{name}": tensor for kind, own in parts.items() for name, tensor in gathered(own).items()
        }

    def _restore(self, progress: Progress, saved: Mapping[str, Tensor]) -> None:
        self.progress = progress
        load(self.model, part(saved, "model/"))
        restore_momentum(self.model, self.optimizer, part(saved, "momentum/"))
        if self.average is not None:
            self.average.restore(part(saved, "ema/"), progress.updates)
        if self.hints is not None:
            load(self.hints, part(saved, "hints/"))
            restore_momentum(self.hints, self.optimizer, part(saved, "hint_momentum/"))
        self.best = part(saved, "best/")

    def _key(self, teaching: _Teaching) -> str:
        return training_key(
            self.settings,
            self.splits,
            self.validation,
            self.model,
            self.teacher.identity if self.teacher is not None else None,
            seed=self.seed,
            device=self.device,
            bf16=self.bf16,
            hint_places=teaching.hint_places,
            processes=self.group.count,
        )


@contextmanager
def _repeatable(device: torch.device) -> Iterator[None]:
    """Make cuDNN deterministic, and restore the caller's random state afterwards."""
    backend = torch.backends.cudnn
    before = backend.deterministic, backend.benchmark
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        backend.deterministic, backend.benchmark = True, False
        try:
            yield
        finally:
            backend.deterministic, backend.benchmark = before
