"""The settings of a training, its learning-rate schedule, the record of an epoch, and the outcome."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from amc.errors import SettingError

if TYPE_CHECKING:
    from torch import nn


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
        accumulate: batches whose gradients are averaged before the optimiser takes a step.
        ema: decay of the moving average of the weights, which is validated and returned; 0 for none.
        randaugment: magnitude of torchvision's RandAugment, 1 to 30 (9 is usual); 0 for none.
        erasing: share of the images in which a random rectangle is erased.
        mixup, cutmix: alpha of torchvision's MixUp and CutMix; with both, one of them is drawn for each
            batch. 0 for none.
        views: number of different epochs of images: epoch number E shows the images of epoch E modulo
            ``views``, in the same batches. 0 for new draws in every epoch.
        best: return the weights of the epoch with the best validation accuracy, not those of the last.
        until: stop after an epoch whose validation accuracy, a share in (0, 1], is at least this.
        hint_weight: weight of the added loss of hints (``amc.training.teaching.hints``); 0 for none.
        hint_maps: whether the linear maps of hints are ``trained`` with the network or stay ``fixed``.
        method: what is trained: ``full`` for all weights; ``norms`` for norm layers, biases and the
            classifier; ``lora`` for adapters of low rank beside every layer, norm layers and biases.
        lora_rank: rank of the adapters.
        compile: run the network through ``torch.compile``, which takes seconds to minutes to begin.
        sharded: each of several processes keeps a part of the weights, gradients, momentum and averages.
        sync_norms: batch norms use the statistics of the whole batch. With false, those of several processes
            use the images of their process, which is faster, and the first process's running statistics are
            kept.

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
    accumulate: int = 1
    ema: float = 0.0
    randaugment: int = 0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    views: int = 0
    best: bool = False
    until: float | None = None
    hint_weight: float = 0.0
    hint_maps: Literal["trained", "fixed"] = "trained"
    method: Literal["full", "norms", "lora"] = "full"
    lora_rank: int = 8
    compile: bool = False
    sharded: bool = False
    sync_norms: bool = True

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
            "accumulate": (self.accumulate >= 1, "1 or more"),
            "ema": (0 <= self.ema < 1, "at least 0 and below 1"),
            "randaugment": (0 <= self.randaugment <= 30, "0 to 30"),
            "erasing": (0 <= self.erasing <= 1, "0 to 1"),
            "mixup": (0 <= self.mixup < math.inf, "0 or more"),
            "cutmix": (0 <= self.cutmix < math.inf, "0 or more"),
            "views": (self.views >= 0, "0 or more"),
            "hint_weight": (0 <= self.hint_weight < math.inf, "0 or more"),
            "hint_maps": (self.hint_maps in ("trained", "fixed"), "trained or fixed"),
            "method": (self.method in ("full", "norms", "lora"), "full, norms or lora"),
            "lora_rank": (self.lora_rank >= 1, "1 or more"),
            "sharded": (
                not (self.sharded and (self.compile or self.hint_weight > 0)),
                "false with compile or hint_weight",
            ),
            "until": (self.until is None or 0 < self.until <= 1, "a share in (0, 1], or null"),
        }
        for name, (good, expected) in checks.items():
            if not good:
                raise SettingError(f"training setting {name}={getattr(self, name)}: expected {expected}")

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others, so that their targets are shares."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def augments(self) -> bool:
        """Whether images are changed beyond what the data set does."""
        return self.randaugment > 0 or self.erasing > 0 or self.mixes

    @property
    def is_taught(self) -> bool:
        """Whether a teacher is needed."""
        return self.distill_weight > 0 or self.hint_weight > 0

    @property
    def views_recur(self) -> bool:
        """Whether a later epoch shows the images of an earlier one."""
        return 0 < self.views < self.epochs

    @property
    def judges(self) -> bool:
        """Whether the validation accuracy decides anything."""
        return self.best or self.until is not None

    def view(self, epoch: int) -> int:
        """Return the number of the epoch whose images epoch number ``epoch`` shows, both from 0."""
        return epoch % self.views if self.views else epoch


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
        seconds_left: expected duration of the epochs to come.
    """

    epoch: int
    epochs: int
    loss: float
    lr: float
    val_top1: float
    seconds: float
    seconds_left: float


@dataclass(frozen=True, eq=False)
class Trained:
    """A finished training.

    Attributes:
        model: the network, in evaluation mode.
        epochs: number of epochs that were run.
        best_epoch: the epoch, from 1, with the best validation accuracy; 0 without any epoch.
        best_top1: that accuracy in percent.
        merge_difference: largest difference between the outputs before and after adapters were merged,
            relative to the largest output; 0 without adapters.
    """

    model: nn.Module
    epochs: int
    best_epoch: int
    best_top1: float
    merge_difference: float = 0.0


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
