"""Wrappers around a network and its modules: DataParallel and what torch.compile makes."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from amc.notes import note_once
from amc.scoring.run import copied

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` in the place of ``old`` at each of its names: a module may be registered under several."""
    for name in [name for name, module in model.named_modules(remove_duplicate=False) if module is old]:
        model.set_submodule(name, new)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return a network without wrappers.

    DataParallel is left out around the whole network. Modules that torch.compile has made are left out
    anywhere, as they cannot be traced again with hooks or other widths. A network with compiled modules is
    copied, which is noted, and its names lose ``_orig_mod``. Others are returned as they are.
    """
    while isinstance(model, _PARALLEL):
        model = model.module
    inner = list(model.modules())
    if not any(_is_compiled(module) for module in inner):
        return model
    note_once(f"{type(model).__name__} is compiled by torch.compile: a copy that is not compiled is used")
    memo: dict[int, Any] = {}
    for module in reversed(inner):  # inner ones first: a compiled module may lie in another
        if (original := _original(module)) is not None:
            memo[id(module)] = copied(original, memo)
    return unwrapped(copied(model, memo))


def _is_compiled(module: nn.Module) -> bool:
    return _original(module) is not None or getattr(module, "_compiled_call_impl", None) is not None


def _original(module: nn.Module) -> nn.Module | None:
    """Return what ``torch.compile(module)`` wraps, or None; ``module.compile()`` makes no wrapper."""
    dynamo = sys.modules.get("torch._dynamo")  # where it was not imported, nothing is compiled
    if dynamo is None or not isinstance(module, dynamo.OptimizedModule):
        return None
    original: nn.Module = module._orig_mod
    return original
