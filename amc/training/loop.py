"""The training loop: SGD with momentum, warm-up, cosine schedule and optional distillation.

A training that is killed at any moment and started again with the same arguments continues from its
checkpoint and ends with the same weights bit for bit, on the same kind of device and with the same number
of threads.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from amc.data import Splits, check_labels
from amc.errors import AmcError, SettingError
from amc.progress import progress
from amc.scoring.layout import memory_format_of
from amc.scoring.precision import computes_bf16
from amc.scoring.run import as_logits, evaluating, logits
from amc.scoring.scores import top1
from amc.seeds import mix
from amc.training.parts import PartedBatch
from amc.training.resume import restore_checkpoint, save_checkpoint, training_key
from amc.training.settings import EpochRecord, TrainSettings, learning_rate

EVALUATION_BATCH = 256
"""Images per batch of the validation."""

LOSS_CHECK_STEPS = 16
"""Steps between two checks of the losses; each check makes a GPU wait."""


def train(
    model: nn.Module,
    splits: Splits,
    settings: TrainSettings,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    teacher: nn.Module | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> nn.Module:
    """Train ``model`` in place.

    The validation accuracy is measured on ``splits.search_val``, and nothing is chosen by it. ``splits.test``
    is not used.

    Args:
        model: maps images (N, *splits.input_shape) to logits (N, classes).
        splits: training and validation images.
        settings: how to train.
        seed: of the batches, the augmentation and layers such as dropout.
        device: where to train.
        teacher: network whose outputs are distilled; required if ``settings.distill_weight`` is positive.
        checkpoint: file to which the state is written after each epoch. Epochs in it are neither run nor
            reported again; a checkpoint of other arguments is overwritten.
        on_epoch: called after each epoch, once its state is written.

    Returns:
        ``model`` in evaluation mode, with the weights of the last epoch.

    Raises:
        SettingError: distillation without a teacher.
        AmcError: the network has no parameter to train, returns no logits or too few for the labels, or has
            other classes than the teacher; or the loss is not finite.
    """
    if teacher is None and settings.distill_weight > 0:
        raise SettingError(
            f"distill_weight={settings.distill_weight} without a teacher network: expected one, or "
            "distill_weight=0"
        )
    device = torch.device(device)
    run = _Run(
        model, splits, settings, seed, device, teacher if settings.distill_weight > 0 else None, checkpoint
    )
    with _repeatable(device), run.bar() as bar:
        for epoch in range(run.finished, settings.epochs):
            record = run.epoch(epoch, bar)
            if on_epoch is not None:
                on_epoch(record)
    return model.to(memory_format=torch.contiguous_format).eval()


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(teacher || student) in nats, the mean over the images.

    Args:
        student, teacher: logits (N, classes).
        temperature: T, by which both logits are divided.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015.
    """
    softened, target = (F.log_softmax(each.float() / temperature, 1) for each in (student, teacher))
    return temperature**2 * F.kl_div(softened, target, reduction="batchmean", log_target=True)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Return the optimiser's groups: ``weight_decay`` for weights, none for norm layers and biases (1-D)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = (
        ([parameter for parameter in trained if parameter.ndim > 1], weight_decay),
        ([parameter for parameter in trained if parameter.ndim <= 1], 0.0),
    )
    return [{"params": parameters, "weight_decay": decay} for parameters, decay in groups if parameters]


class _Run:
    """The state of one training: model, optimiser, number of finished epochs, best accuracy so far."""

    def __init__(
        self,
        model: nn.Module,
        splits: Splits,
        settings: TrainSettings,
        seed: int,
        device: torch.device,
        teacher: nn.Module | None,
        checkpoint: Path | None,
    ) -> None:
        self.model, self.splits, self.settings, self.seed, self.device = model, splits, settings, seed, device
        # A copy, as another memory format would change the bits that the caller gets from the teacher.
        self.teacher, self.checkpoint = copy.deepcopy(teacher), checkpoint
        self.bf16 = settings.precision == "bf16" or (settings.precision == "auto" and computes_bf16(device))
        self.key = "" if checkpoint is None else self._key()
        example = splits.calibration.images[:2]
        self.layout = memory_format_of(model.to(device), example)
        model.to(memory_format=self.layout)
        if self.teacher is not None:
            self.teacher_layout = memory_format_of(self.teacher.to(device), example)
            self.teacher.to(memory_format=self.teacher_layout)
        groups = parameter_groups(model, settings.weight_decay)
        if not groups:
            raise AmcError("the network has no parameter to train, expected at least one with requires_grad")
        self.optimizer = torch.optim.SGD(
            groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov
        )
        self.batch = PartedBatch(model, device)
        self.finished, self.best = 0, 0.0
        if checkpoint is not None:
            self.finished, self.best = restore_checkpoint(checkpoint, self.key, model, self.optimizer)

    def bar(self) -> tqdm:
        """Return the progress bar over the batches of all epochs."""
        steps = self.splits.steps_per_epoch
        return progress(self.settings.epochs * steps, "training", "batch", initial=self.finished * steps)

    def epoch(self, epoch: int, bar: tqdm) -> EpochRecord:
        """Run epoch number ``epoch`` (from 0), save the state and return the record."""
        started = time.perf_counter()
        torch.manual_seed(mix(self.seed, epoch, "train"))  # for layers such as dropout
        losses: list[float] = []
        pending: list[Tensor] = []
        self.model.train()
        first = epoch * self.splits.steps_per_epoch
        for step, (images, labels) in enumerate(self.splits.train_batches(epoch, self.seed), first):
            pending.append(self._step(step, images, labels))
            bar.update()
            if len(pending) == LOSS_CHECK_STEPS:
                losses += self._checked(pending, step, bar)
                pending = []
        if pending:
            losses += self._checked(pending, step, bar)
        validation = self.splits.search_val
        accuracy = top1(logits(self.model, validation.images, EVALUATION_BATCH), validation.labels)
        self.finished, self.best = epoch + 1, max(self.best, accuracy)
        if self.checkpoint is not None:
            save_checkpoint(
                self.checkpoint,
                self.key,
                self.model,
                self.optimizer,
                seed=self.seed,
                finished=self.finished,
                best=self.best,
            )
        return EpochRecord(
            epoch=epoch + 1,
            epochs=self.settings.epochs,
            loss=sum(losses) / len(losses),
            lr=self.optimizer.param_groups[0]["lr"],
            val_top1=accuracy,
            seconds=time.perf_counter() - started,
        )

    def _step(self, step: int, images: Tensor, labels: Tensor) -> Tensor:
        """Take optimiser step number ``step`` (from 0); return the loss on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.settings, self.splits.steps_per_epoch)
        loss = self.batch.backward(images, labels, self._backward)
        if self.settings.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        self.optimizer.step()
        return loss

    def _backward(self, images: Tensor, labels: Tensor, factor: float) -> Tensor:
        """Add the gradients of ``factor`` times the loss; return that product on the device."""
        images = images.to(self.device, memory_format=self.layout)
        with self._autocast():
            # With a copy where the teacher needs the images too: a network may work in place.
            given = images if self.teacher is None else images.clone()
            output = as_logits(self.model(given)).float()
        check_labels(labels, output.shape[1])
        loss = factor * self._loss(output, images, labels.to(self.device))
        loss.backward()
        return loss.detach()

    def _loss(self, output: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        smoothing, weight = self.settings.label_smoothing, self.settings.distill_weight
        loss = F.cross_entropy(output, labels, label_smoothing=smoothing)
        if self.teacher is None:
            return loss
        with torch.no_grad(), evaluating(self.teacher), self._autocast():
            target = as_logits(self.teacher(images.contiguous(memory_format=self.teacher_layout))).float()
        if target.shape != output.shape:
            raise AmcError(
                f"the teacher has {target.shape[1]} outputs, the network {output.shape[1]}: expected the "
                "same classes"
            )
        distilled = distillation_loss(output, target, self.settings.distill_temperature)
        return (1 - weight) * loss + weight * distilled

    def _checked(self, pending: list[Tensor], last: int, bar: tqdm) -> list[float]:
        """Return the losses of the steps up to ``last`` as numbers; fail if one is not finite."""
        values = torch.stack(pending).tolist()
        for step, value in enumerate(values, last - len(values) + 2):
            if not math.isfinite(value):
                raise AmcError(
                    f"the training loss is {value} at step {step} of {bar.total}, expected a finite number: "
                    f"the learning rate {self.settings.lr:g} is probably too high, try "
                    f"{self.settings.lr / 10:g}"
                )
        bar.set_postfix(loss=f"{values[-1]:.3f}", best_val=f"{self.best:.1f}%", refresh=False)
        return values

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def _key(self) -> str:
        return training_key(
            self.settings,
            self.splits,
            self.model,
            self.teacher,
            seed=self.seed,
            device=self.device,
            bf16=self.bf16,
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
