"""Training of a sparse network without changing its zeros."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.utils import parametrize


@contextmanager
def zeros_held(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Keep zero weights of the named layers at zero while the block trains the network.

    So do all modules that share such a weight, as each of them would train its zeros.
    """
    modules = dict(model.named_modules())
    held = {id(modules[name].weight) for name in names}
    places = [
        (module, own)
        for module in model.modules()
        for own, tensor in module._parameters.items()
        if id(tensor) in held
    ]
    for module, own in places:
        parametrize.register_parametrization(module, own, _Held(getattr(module, own).detach() != 0))
    try:
        yield
    finally:
        for module, own in places:
            parametrize.remove_parametrizations(module, own, leave_parametrized=True)


class _Held(nn.Module):
    kept: Tensor

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.kept
