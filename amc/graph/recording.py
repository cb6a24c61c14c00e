"""The forward pass as it is recorded for the channel graph.

Its chunks, norms of the user's own, what its modules read, and gradients where it has none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from amc.scoring.flatten import output_tensors

Readings = dict[nn.Module, list[Any]]
"""Module -> the backward functions that made the tensors which it reads."""


class Chunks(TorchFunctionMode):
    """Records the results of ``chunk`` into equal parts, which adapt to the number of channels.

    Attributes:
        functions: their backward functions. A ``split`` has the same ones, and may have a fixed size.
    """

    def __init__(self) -> None:
        super().__init__()
        self.functions: set[Any] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch and look at what ``chunk`` returns."""
        results = func(*args, **(kwargs or {}))
        if func in (torch.chunk, Tensor.chunk):
            wanted = args[1] if len(args) > 1 else (kwargs or {})["chunks"]
            if len(results) == wanted and len({part.shape for part in results}) == 1:
                self.functions.add(results[0].grad_fn)
        return results


class OwnNorms(TorchFunctionMode):
    """Writes out ``F.batch_norm`` of a user's own module (InPlace-ABN) as products and sums.

    torch-pruning knows the norms of torch. Of another module it sees bare parameters, which can be followed
    through products and sums alone.

    Args:
        model: the network whose forward pass is recorded, in evaluation mode.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        norms = [module for module in model.modules() if isinstance(module, _NormBase)]
        self._known = {id(module.running_mean) for module in norms}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch, or compute the norm of another module."""
        given = kwargs or {}
        if func is not F.batch_norm or given["training"] or id(args[1]) in self._known:
            return func(*args, **given)
        image, mean, variance = args
        shape = (-1, *(1 for _ in image.shape[2:]))
        found = (image - mean.view(shape)) * (variance.view(shape) + given["eps"]).rsqrt()
        if given["weight"] is not None:
            found = found * given["weight"].view(shape)
        return found if given["bias"] is None else found + given["bias"].view(shape)


@contextlib.contextmanager
def recorded_readings(model: nn.Module) -> Iterator[Readings]:
    """Record what the modules of ``model`` read, in all calls of a forward pass."""
    readings: Readings = {}

    def before(module: nn.Module, args: Any, options: Any) -> None:
        made = [tensor.grad_fn for _, tensor in output_tensors([args, options])]
        readings.setdefault(module, []).extend(function for function in made if function is not None)

    hooks = [each.register_forward_pre_hook(before, with_kwargs=True) for each in model.modules()]
    try:
        yield readings
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def gradients_everywhere() -> Iterator[None]:
    """Record gradients also under ``no_grad``, ``inference_mode``, ``detach`` and checkpoints.

    The channel graph is read from gradients; a part of a network that asks for none would be missing.
    """
    modes = torch.autograd.grad_mode

    def enter(self: Any) -> None:
        self.prev = torch.is_grad_enabled()

    def with_mode(original: Callable[..., None], wanted: bool) -> Callable[..., None]:
        return lambda self, mode=True: original(self, wanted)

    patches: list[Any] = [
        mock.patch.object(modes.no_grad, "__enter__", enter),
        mock.patch.object(
            modes.set_grad_enabled, "__init__", with_mode(modes.set_grad_enabled.__init__, True)
        ),
        mock.patch.object(modes.inference_mode, "__init__", with_mode(modes.inference_mode.__init__, False)),
        mock.patch.object(Tensor, "detach", lambda tensor: tensor.view_as(tensor)),
        without_checkpoints(),
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


def without_checkpoints() -> AbstractContextManager[Any]:
    """Call the functions in checkpoints as if there were none; tracers do not see into them."""
    return mock.patch.object(checkpoint, "CheckpointFunction", _Called)


class _Called:
    """Stands for the checkpoint that runs its function without gradients."""

    @staticmethod
    def apply(function: Callable[..., Any], _preserve: bool, *args: Any) -> Any:
        return function(*args)
