"""The gradients of one training step, in parts of its batch where memory runs out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from amc.scoring.halving import fitting, half

LEAST = 2
"""Images of the smallest part: norm layers in training mode may need two."""

Backward = Callable[[Tensor, Tensor, float], Tensor]
"""Adds the gradients of images (N, C, H, W) and labels (N,), times a factor; returns the loss times it."""


class PartedBatch:
    """Accumulates the gradients of a batch over its parts: one, or more once memory has run out.

    The gradient is that of the mean loss of the whole batch. Norm layers, however, see each part alone.

    Args:
        model: the network in training.
        device: where it is trained.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model, self._parts, self._has_fitted = model, 1, False
        self._devices = [device] if device.type == "cuda" else []

    def backward(self, images: Tensor, labels: Tensor, backward: Backward) -> Tensor:
        """Put the gradients of the mean loss into the parameters; return the loss (a scalar, detached).

        Raises:
            AmcError: memory runs out even with ``LEAST`` images.
        """
        while (found := self._attempt(images, labels, backward)) is None:
            half(self._model, -(-len(images) // self._parts), LEAST)
            self._parts = min(2 * self._parts, len(images) // LEAST)
        self._has_fitted = True
        return found[0]

    def _attempt(self, images: Tensor, labels: Tensor, backward: Backward) -> tuple[Tensor] | None:
        """Return the loss, or None if memory ran out.

        An attempt before the first one that fits leaves no trace, so that a training that is taken up again
        repeats it. Later ones rarely fail, and copies at every step would take time.
        """
        if self._has_fitted:
            return fitting(lambda: self._accumulate(images, labels, backward))
        buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        random = torch.get_rng_state(), [torch.cuda.get_rng_state(each) for each in self._devices]
        if (found := fitting(lambda: self._accumulate(images, labels, backward))) is None:
            torch.set_rng_state(random[0])
            for device, state in zip(self._devices, random[1], strict=True):
                torch.cuda.set_rng_state(state, device)
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
        return found

    def _accumulate(self, images: Tensor, labels: Tensor, backward: Backward) -> Tensor:
        self._model.zero_grad(set_to_none=True)
        parts = zip(images.tensor_split(self._parts), labels.tensor_split(self._parts), strict=True)
        losses = [backward(own, truth, len(own) / len(images)) for own, truth in parts]
        return torch.stack(losses).sum()
