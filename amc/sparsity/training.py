"""Training of a sparse network without changing its zeros."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.utils import parametrize


@contextmanager
def zeros_held(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Keep zero weights of the named layers at zero while the block trains the network."""
    modules = [dict(model.named_modules())[name] for name in names]
    for module in modules:
        parametrize.register_parametrization(module, "weight", _Held(module.weight.detach() != 0))
    try:
        yield
    finally:
        for module in modules:
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


class _Held(nn.Module):
    kept: Tensor

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.kept
