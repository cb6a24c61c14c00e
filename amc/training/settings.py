"""The settings of a training, its learning-rate schedule and the record of an epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from amc.errors import SettingError


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        epochs: number of passes over the training images.
        lr: peak learning rate, which is reached at the end of the warm-up.
        momentum, nesterov: of SGD.
        weight_decay: of weights; norm layers and biases have none.
        warmup_epochs: length of the warm-up, fractions allowed; at most half of the training.
        label_smoothing: share of the label that is spread over all classes.
        precision: ``auto`` is bfloat16 autocast on devices that have its arithmetic, fp32 on others.
        distill_weight: share of the distillation loss, in [0, 1].
        distill_temperature: temperature of the distillation loss.
        grad_clip: largest gradient norm; None for no clipping.

    Raises:
        SettingError: an impossible value.
    """

    epochs: int
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = True
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    distill_weight: float = 0.0
    distill_temperature: float = 4.0
    grad_clip: float | None = None

    def __post_init__(self) -> None:
        checks = {
            "epochs": (self.epochs >= 0, "0 or more"),
            "lr": (0 < self.lr < math.inf, "a positive number"),
            "momentum": (0 <= self.momentum < 1, "at least 0 and below 1"),
            "nesterov": (not self.nesterov or self.momentum > 0, "false when momentum is 0"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "warmup_epochs": (self.warmup_epochs >= 0, "0 or more"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "at least 0 and below 1"),
            "precision": (self.precision in ("auto", "fp32", "bf16"), "auto, fp32 or bf16"),
            "distill_weight": (0 <= self.distill_weight <= 1, "0 to 1"),
            "distill_temperature": (self.distill_temperature > 0, "a positive number"),
            "grad_clip": (
                self.grad_clip is None or self.grad_clip > 0,
                "a positive number, or null for none",
            ),
        }
        for name, (good, expected) in checks.items():
            if not good:
                raise SettingError(f"training setting {name}={getattr(self, name)}: expected {expected}")


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch.

    Attributes:
        epoch: its number, from 1.
        epochs: number of all epochs.
        loss: mean training loss.
        lr: learning rate of the last step.
        val_top1: validation accuracy in percent.
        seconds: duration, with the validation.
    """

    epoch: int
    epochs: int
    loss: float
    lr: float
    val_top1: float
    seconds: float


def learning_rate(step: int, settings: TrainSettings, steps_per_epoch: int) -> float:
    """Return the learning rate of optimiser step number ``step`` (from 0).

    It rises linearly over the warm-up, from lr / (warm-up steps) to lr, and falls by half a cosine, which
    reaches 0 one step after the last.
    """
    total = settings.epochs * steps_per_epoch
    warmup = min(round(settings.warmup_epochs * steps_per_epoch), total // 2)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
