"""Recurrent layers as one operation each, where channels end: PyTorch runs some as many small ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten


@contextmanager
def recurrent_as_walls(model: nn.Module) -> Iterator[None]:
    """Make the recurrent layers of ``model`` walls (``amc.graph.walls``) for one forward pass."""
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.RNNBase | nn.RNNCellBase)
    }
    try:
        for name, module in layers.items():
            vars(module)["forward"] = _walled(module, f"{name} ({type(module).__name__}) is not supported")
        yield
    finally:
        for module in layers.values():
            del vars(module)["forward"]


def _walled(module: nn.Module, reason: str) -> Any:
    def forward(*args: Any, **options: Any) -> Any:
        with torch.no_grad():
            outputs, structure = tree_flatten(type(module).forward(module, *args, **options))
        inputs = [each for each in tree_flatten((args, options))[0] if isinstance(each, Tensor)]
        return tree_unflatten(list(_Wall.apply(reason, len(inputs), *inputs, *outputs)), structure)

    return forward


class _Wall(torch.autograd.Function):
    """Passes outputs on that were computed without gradients; its backward function has the reason."""

    @staticmethod
    def forward(ctx: Any, reason: str, inputs: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.wall = reason
        return tuple(tensor.clone() for tensor in tensors[inputs:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError("only the graph is used, never a gradient")
