"""Run a network over images, and the numbers that come out of its logits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from amc.errors import AmcError
from amc.scoring.flatten import as_matrix, is_logits


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
