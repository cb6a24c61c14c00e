"""Train a network after pruning (or from scratch): SGD with momentum, warm-up, cosine, optional distillation.

A run that is killed at any moment and started again with the same arguments continues from its checkpoint and
ends with the same weights bit for bit (on one kind of device and number of threads).
"""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from amc.data import Splits, check_labels
from amc.digest import digest
from amc.errors import AmcError
from amc.files import atomic_write_bytes
from amc.models.checkpoint import state_digest
from amc.scoring.precision import computes_bf16
from amc.scoring.run import as_logits, evaluating, logits
from amc.scoring.scores import top1
from amc.seeds import mix
from amc.training.settings import EpochRecord, TrainSettings, learning_rate

EVALUATION_BATCH = 256


LOSS_CHECK_STEPS = 16
"""Steps between two looks at the losses: each look makes a GPU wait."""


_log = logging.getLogger(__name__)


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
    """Train `model` in place on `device`; return it in evaluation mode with the weights of the last epoch.

    After each epoch the state is written to `checkpoint` and then `on_epoch` is called; epochs found in
    `checkpoint` are not run, nor reported, again. A checkpoint of other arguments is ignored and overwritten.
    The validation accuracy is on `splits.search_val`; it chooses nothing, and `splits.test` is not touched.
    """
    if teacher is None and settings.distill_weight > 0:
        raise AmcError(
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
    """Return T^2 KL(teacher || student), mean over the images, of (N,K) logits softened by T = `temperature`.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015.
    """
    softened, target = (F.log_softmax(each.float() / temperature, 1) for each in (student, teacher))
    return temperature**2 * F.kl_div(softened, target, reduction="batchmean", log_target=True)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Return optimiser groups: `weight_decay` on weights, none on norm layers and biases (at most 1-D)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = (
        ([parameter for parameter in trained if parameter.ndim > 1], weight_decay),
        ([parameter for parameter in trained if parameter.ndim <= 1], 0.0),
    )
    return [{"params": parameters, "weight_decay": decay} for parameters, decay in groups if parameters]


class _Run:
    """The state of one training: model, optimiser, how many epochs are finished, best accuracy so far."""

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
        # A copy: laid out for speed, it would no longer give the caller the same bits.
        self.teacher, self.checkpoint = copy.deepcopy(teacher), checkpoint
        self.bf16 = settings.precision == "bf16" or (settings.precision == "auto" and computes_bf16(device))
        self.key = "" if checkpoint is None else self._key()
        model.to(device).to(memory_format=torch.channels_last)
        if self.teacher is not None:
            self.teacher.to(device).to(memory_format=torch.channels_last)
        groups = parameter_groups(model, settings.weight_decay)
        if not groups:
            raise AmcError("the network has no parameter to train, expected at least one with requires_grad")
        self.optimizer = torch.optim.SGD(
            groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov
        )
        self.finished, self.best = self._restore()

    def bar(self) -> tqdm:
        """Return the progress bar over the batches of all epochs; none is drawn off a terminal."""
        steps = self.splits.steps_per_epoch
        total, done = self.settings.epochs * steps, self.finished * steps
        return tqdm(total=total, initial=done, desc="training", unit="batch", leave=False, disable=None)

    def epoch(self, epoch: int, bar: tqdm) -> EpochRecord:
        """Run epoch `epoch` (from 0), save the state and return the record."""
        started = time.perf_counter()
        torch.manual_seed(mix(self.seed, epoch, "train"))  # dropout and the like
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
        self._save()
        return EpochRecord(
            epoch=epoch + 1,
            epochs=self.settings.epochs,
            loss=sum(losses) / len(losses),
            lr=self.optimizer.param_groups[0]["lr"],
            val_top1=accuracy,
            seconds=time.perf_counter() - started,
        )

    def _step(self, step: int, images: Tensor, labels: Tensor) -> Tensor:
        """Take optimiser step `step` (from 0) and return the loss, still on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.settings, self.splits.steps_per_epoch)
        images = images.to(self.device, memory_format=torch.channels_last)
        with self._autocast():
            output = as_logits(self.model(images)).float()
        check_labels(labels, output.shape[1])
        loss = self._loss(output, images, labels.to(self.device))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.settings.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        self.optimizer.step()
        return loss.detach()

    def _loss(self, output: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        smoothing, weight = self.settings.label_smoothing, self.settings.distill_weight
        loss = F.cross_entropy(output, labels, label_smoothing=smoothing)
        if self.teacher is None:
            return loss
        with torch.no_grad(), evaluating(self.teacher), self._autocast():
            target = as_logits(self.teacher(images)).float()
        if target.shape != output.shape:
            raise AmcError(
                f"the teacher has {target.shape[1]} outputs, the network {output.shape[1]}: expected the "
                "same classes"
            )
        distilled = distillation_loss(output, target, self.settings.distill_temperature)
        return (1 - weight) * loss + weight * distilled

    def _checked(self, pending: list[Tensor], last: int, bar: tqdm) -> list[float]:
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
        """Hash everything that the result depends on, so that no other run's checkpoint is taken."""
        about = {
            "settings": asdict(self.settings),
            "bf16": self.bf16,
            "device": self.device.type,
            "seed": self.seed,
            "data": [self.splits.name, self.splits.fingerprint, self.splits.steps_per_epoch],
            "model": state_digest(self.model.state_dict()),
            "teacher": state_digest(self.teacher.state_dict()) if self.teacher is not None else None,
        }
        return digest(json.dumps(about, sort_keys=True))

    def _momentum(self) -> Iterator[tuple[str, nn.Parameter, Tensor | None]]:
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                yield name, parameter, self.optimizer.state[parameter].get("momentum_buffer")

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        from safetensors.torch import save

        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"momentum/{name}": buffer for name, _, buffer in self._momentum() if buffer is not None}
        flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        about = {"key": self.key, "seed": self.seed, "epoch": self.finished, "best": self.best}
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(self.checkpoint, save(flat, {name: str(value) for name, value in about.items()}))

    @torch.no_grad()
    def _restore(self) -> tuple[int, float]:
        """Load the checkpoint if it is of this very run; return its finished epochs and best accuracy."""
        if self.checkpoint is None or not self.checkpoint.is_file():
            return 0, 0.0
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.checkpoint, "pt") as file:
                about = file.metadata() or {}
                if about.get("key") != self.key:
                    _log.warning("%s is of other settings: training starts anew", self.checkpoint)
                    return 0, 0.0
                for name, tensor in self.model.state_dict().items():
                    tensor.copy_(file.get_tensor(f"model/{name}"))
                saved = set(file.keys())
                for name, parameter, _ in self._momentum():
                    if f"momentum/{name}" in saved:
                        buffer = torch.empty_like(parameter).copy_(file.get_tensor(f"momentum/{name}"))
                        self.optimizer.state[parameter]["momentum_buffer"] = buffer
        except SafetensorError as error:
            _log.warning("%s cannot be read (%s): training starts anew", self.checkpoint, error)
            return 0, 0.0
        return int(about["epoch"]), float(about["best"])


@contextmanager
def _repeatable(device: torch.device) -> Iterator[None]:
    """Deterministic cuDNN, and the caller's random state given back afterwards."""
    backend = torch.backends.cudnn
    before = backend.deterministic, backend.benchmark
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        backend.deterministic, backend.benchmark = True, False
        try:
            yield
        finally:
            backend.deterministic, backend.benchmark = before
