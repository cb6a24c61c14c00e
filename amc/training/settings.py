"""How to train, and what an epoch gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from amc.errors import AmcError


@dataclass(frozen=True)
class TrainSettings:
    """How to train: `lr` is the peak, reached after `warmup_epochs` (or a fraction; at most half the run).

    `precision` auto is bfloat16 autocast where the device computes in it, else fp32. `distill_weight` is the
    share of the teacher's loss, `grad_clip` the largest gradient norm (None: no clipping).
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
                raise AmcError(f"training setting {name}={getattr(self, name)}: expected {expected}")


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch: `epoch` counts from 1, `loss` is its mean, `lr` its last, `val_top1` in percent."""

    epoch: int
    epochs: int
    loss: float
    lr: float
    val_top1: float
    seconds: float


def learning_rate(step: int, settings: TrainSettings, steps_per_epoch: int) -> float:
    """Return the rate of optimiser step `step` (from 0): linear up over the warm-up, then half a cosine down.

    The first step has lr / (warm-up steps), the last warm-up step the full lr; one step past the end has 0.
    """
    total = settings.epochs * steps_per_epoch
    warmup = min(round(settings.warmup_epochs * steps_per_epoch), total // 2)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
