"""The four scores of a network: accuracy, cross-entropy, agreement and likeness."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from amc.data import check_labels
from amc.errors import AmcError


def top1(logits: Tensor, labels: Tensor) -> float:
    """Return the accuracy in percent of `logits` (N,K) against `labels` (N,)."""
    check_labels(labels, logits.shape[1])
    return 100 * (logits.argmax(1) == labels.to(logits.device)).double().mean().item()


def cross_entropy(logits: Tensor, labels: Tensor) -> float:
    """Return the mean cross-entropy in nats of `logits` (N,K) against `labels` (N,)."""
    check_labels(labels, logits.shape[1])
    return F.cross_entropy(logits.double(), labels.to(logits.device)).item()


def agreement(logits: Tensor, dense_logits: Tensor) -> float:
    """Return minus the mean KL(dense || pruned) in nats of two (N,K) logits: 0 is best, needs no labels."""
    if logits.shape != dense_logits.shape:
        raise AmcError(
            f"logits {tuple(logits.shape)} against dense logits {tuple(dense_logits.shape)}: expected the "
            "same shape; they are probably of different images or heads"
        )
    pruned, dense = (F.log_softmax(each.double(), 1) for each in (logits, dense_logits.to(logits.device)))
    return 0.0 - F.kl_div(pruned, dense, reduction="batchmean", log_target=True).item()


def likeness(outputs: Tensor, dense_outputs: Tensor) -> float:
    """Return minus the squared error of outputs (N, D), relative to the dense outputs' variance over images.

    0 is best, -1 is what a constant would reach; needs no labels and no classes.
    """
    if outputs.shape != dense_outputs.shape:
        raise AmcError(
            f"outputs {tuple(outputs.shape)} against dense ones {tuple(dense_outputs.shape)}: expected the "
            "same shape; they are probably of different images or heads"
        )
    dense = dense_outputs.double()
    error = (outputs.double() - dense).square().sum()
    spread = (dense - dense.mean(0)).square().sum().clamp(min=torch.finfo(torch.float64).tiny)
    return 0.0 - float(error / spread)
