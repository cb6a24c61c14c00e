"""The exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from amc.training.parallel.sharding import assign


class Average:
    """The moving average of all parameters and statistics of ``model``; it starts at their present values.

    The first averages would be those of the first weights. The decay therefore starts low: after n updates
    it is at most (1 + n) / (10 + n).

    Args:
        model: the network that is trained.
        decay: share of the average that an update keeps, below 1.

    Attributes:
        tensors: name in the state dict -> the average. Counters are copies, and so are buffers with infinite
            values, such as masks, of which no mean exists.
        updates: number of updates so far.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay = model, decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        buffers = {name for name, _ in model.named_buffers()}
        self._copied = {
            name
            for name, tensor in self.tensors.items()
            if not tensor.is_floating_point() or (name in buffers and not tensor.isfinite().all())
        }
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights."""
        self.updates += 1
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        present = self._model.state_dict()
        kinds: dict[type, list[str]] = {}  # those in parts and whole ones do not go together
        for name in self.tensors.keys() - self._copied:
            kinds.setdefault(type(present[name]), []).append(name)
        for names in kinds.values():
            torch._foreach_lerp_(
                [self.tensors[name] for name in names], [present[name] for name in names], 1 - decay
            )
        for name in self._copied:
            self.tensors[name].copy_(present[name])

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Set the average to what it was after ``updates`` updates."""
        for name, tensor in self.tensors.items():
            assign(tensor, tensors[name])
        self.updates = updates

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Let the network have the averages during the block."""
        own = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        load(self._model, self.tensors)
        try:
            yield
        finally:
            load(self._model, own)


def load(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy ``tensors`` into the state of ``model``, which keeps its memory formats."""
    for name, tensor in model.state_dict().items():
        assign(tensor, tensors[name])
