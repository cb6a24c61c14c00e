"""The gradients of one training step, in parts of its batch where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from amc.scoring.halving import fitting, half
from amc.seeds import host_draws, restore_host_draws

LEAST = 2
"""Images of the smallest part: norm layers in training mode may need two."""

Backward = Callable[[slice, float], Tensor]
"""Adds the gradients of some images of a batch, times a factor; returns their mean loss times it."""


class PartedBatch:
    """Accumulates the gradients of a batch over its parts: one, or more once memory has run out.

    The gradient is that of the mean loss of the whole batch. Norm layers, however, see each part alone.

    Args:
        model: the network in training.
        groups: what the optimiser trains, in its form: ``params`` are the tensors of a group.
        device: where it is trained.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Mapping[str, Any]], device: torch.device) -> None:
        self._model, self._parts, self._has_fitted = model, 1, False
        self._trained: list[Tensor] = [tensor for group in groups for tensor in group["params"]]
        self._devices = [device] if device.type == "cuda" else []

    def backward(self, count: int, backward: Backward, *, keep: bool = False) -> Tensor:
        """Put the gradients of the mean loss into the parameters; return the loss (a scalar, detached).

        Args:
            count: number of images of the batch.
            backward: adds the gradients of a part.
            keep: add to the gradients that are there, instead of replacing them.

        Raises:
            AmcError: memory runs out even with ``LEAST`` images.
        """
        while (found := self._attempt(count, backward, keep)) is None:
            half(self._model, -(-count // self._parts), LEAST)
            self._parts = min(2 * self._parts, count // LEAST)
        self._has_fitted = True
        return found[0]

    def _attempt(self, count: int, backward: Backward, keep: bool) -> tuple[Tensor] | None:
        """Return the loss, or None if memory ran out.

        An attempt before the first one that fits leaves no trace, so that a training that is taken up again
        repeats it. Later ones rarely fail, and copies of buffers at every step would take time.
        """
        before = [None if each.grad is None else each.grad.clone() for each in self._trained] if keep else []
        if self._has_fitted:
            found = fitting(lambda: self._accumulate(count, backward, keep))
        else:
            found = self._without_trace(lambda: self._accumulate(count, backward, keep))
        if found is None:
            for tensor, gradient in zip(self._trained, before, strict=keep):
                tensor.grad = gradient
        return found

    def _without_trace(self, attempt: Callable[[], Tensor]) -> tuple[Tensor] | None:
        buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        random = torch.get_rng_state(), [torch.cuda.get_rng_state(each) for each in self._devices]
        host = host_draws()
        if (found := fitting(attempt)) is None:
            restore_host_draws(host)
            torch.set_rng_state(random[0])
            for device, state in zip(self._devices, random[1], strict=True):
                torch.cuda.set_rng_state(state, device)
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
        return found

    def _accumulate(self, count: int, backward: Backward, keep: bool) -> Tensor:
        if not keep:
            for tensor in self._trained:
                tensor.grad = None
        parts = [part for part in torch.arange(count).tensor_split(self._parts) if len(part)]
        slices = [slice(int(part[0]), int(part[-1]) + 1) for part in parts]
        losses = [backward(own, (own.stop - own.start) / count) for own in slices]
        return torch.stack(losses).sum()
