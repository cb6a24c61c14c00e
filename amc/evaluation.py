"""Run a network over images, and the numbers that come out of its logits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.data import check_labels
from amc.errors import AmcError
from amc.outputs import as_matrix, is_logits


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put `model` into evaluation mode and give every module its own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the first parameter or buffer of `model`; the CPU if it has none."""
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def as_logits(output: object) -> Tensor:
    """Return a network's `output` if it is a (N,K) tensor; raise `AmcError` that says what it is instead."""
    if not isinstance(output, Tensor):
        kind = type(output).__name__
        size = f" of {len(output)}" if isinstance(output, (tuple, list, dict)) else ""
        raise AmcError(
            f"the network returned a {kind}{size}, expected one tensor of logits (N, classes): wrap it so "
            "that forward returns the logits alone (auxiliary heads off)"
        )
    if not is_logits(output):
        raise AmcError(
            f"the network returned a tensor of shape {tuple(output.shape)}, expected logits (N, classes): "
            "it is probably not a classifier, or lacks its flatten"
        )
    return output


@torch.inference_mode()
def logits(model: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """Return the logits (N,K) float32, on the CPU, of normalised `images` (N,C,H,W), in evaluation mode.

    Batches go to the device of `model`; the mode of every module is as before afterwards.
    """
    return _run(model, images, batch_size, lambda output, _: as_logits(output))


@torch.inference_mode()
def outputs(model: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """Return what any network gives for `images` as one matrix (N, columns), as `logits` does for logits."""
    return _run(model, images, batch_size, as_matrix)


def _run(model: nn.Module, images: Tensor, batch_size: int, read: Callable[[object, int], Tensor]) -> Tensor:
    if not len(images):
        raise AmcError("got no images to evaluate, expected at least one")
    device = device_of(model)
    with evaluating(model):
        parts = [read(model(part.to(device)), len(part)).float() for part in images.split(batch_size)]
    result = torch.cat(parts).cpu()
    bad = int((~result.isfinite()).any(1).sum())
    if bad:
        raise AmcError(
            f"the network gave NaN or infinity for {bad} of {len(result)} images, expected finite logits: "
            "its weights are probably NaN (diverged training or a damaged checkpoint)"
        )
    return result


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
