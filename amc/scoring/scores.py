"""The four scores of a network: accuracy, cross-entropy, agreement (KL) and likeness (output error)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from amc.data import check_labels
from amc.errors import AmcError, SettingError


def top1(logits: Tensor, labels: Tensor) -> float:
    """Return the accuracy of ``logits`` (N, classes) against ``labels`` (N,), in percent.

    Raises:
        AmcError: a label has no logit.
    """
    check_labels(labels, logits.shape[1])
    return 100 * (logits.argmax(1) == labels.to(logits.device)).double().mean().item()


def cross_entropy(logits: Tensor, labels: Tensor) -> float:
    """Return the mean cross-entropy of ``logits`` (N, classes) against ``labels`` (N,), in nats.

    Raises:
        AmcError: a label has no logit.
    """
    check_labels(labels, logits.shape[1])
    return F.cross_entropy(logits.double(), labels.to(logits.device)).item()


def agreement(logits: Tensor, dense_logits: Tensor) -> float:
    """Return minus the mean KL(dense || pruned) in nats; 0 is best. It needs no labels.

    Args:
        logits: of the pruned network, (N, classes).
        dense_logits: of the dense network, (N, classes).

    Raises:
        SettingError: the two shapes differ.
    """
    _check_same_shape("logits", logits, dense_logits)
    pruned, dense = (F.log_softmax(each.double(), 1) for each in (logits, dense_logits.to(logits.device)))
    return 0.0 - F.kl_div(pruned, dense, reduction="batchmean", log_target=True).item()


def likeness(outputs: Tensor, dense_outputs: Tensor) -> float:
    """Return minus the relative output error: the squared error over the dense outputs' variance.

    0 is best; a network that always returns the mean of the dense outputs has -1. It needs no labels and no
    classes.

    Args:
        outputs: of the pruned network, (N, D).
        dense_outputs: of the dense network, (N, D).

    Raises:
        SettingError: the two shapes differ.
        AmcError: the dense outputs do not vary, so that an error is relative to nothing.
    """
    _check_same_shape("outputs", outputs, dense_outputs)
    dense = dense_outputs.double()
    error = float((outputs.double() - dense).square().sum())
    spread = float((dense - dense.mean(0)).square().sum())
    if error > 0 and spread == 0:
        count = len(dense)
        raise AmcError(
            "the dense network's outputs for all images are the same, so no error can be relative to their "
            f"variance: {count} image{'s' if count > 1 else ''}; expected two different ones or more, and a "
            "network that tells them apart"
        )
    return 0.0 - error / max(spread, torch.finfo(torch.float64).tiny)


def _check_same_shape(what: str, pruned: Tensor, dense: Tensor) -> None:
    if pruned.shape != dense.shape:
        raise SettingError(
            f"{what} {tuple(pruned.shape)} against dense ones {tuple(dense.shape)}: expected the same "
            "shape; they are probably of different images or heads"
        )
