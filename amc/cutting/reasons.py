"""Why a group cannot be cut, in words: the module that fails without its channels, and how it holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set

import numpy as np
import torch
from torch import Tensor, nn

from amc.cutting.modules import axis_length
from amc.cutting.slicing import Cut, slice_model
from amc.cutting.trial import where_it_fails
from amc.errors import about_sizes, brief
from amc.graph.groups import ChannelGroup
from amc.graph.tied import tied_modules

UNSEEN = "an operation mixes these channels in a way that the channel graph does not see"


def reason_of(
    model: nn.Module,
    group: ChannelGroup,
    cut: Cut,
    run: Callable[[nn.Module], object],
    evaluated: Set[str],
) -> str | None:
    """Return why ``model`` cannot be cut in one group, or None where it is not known.

    Args:
        model: the dense network.
        cut: removes channels of this group alone.
        run: runs a cut network in the way in which it fails.
        evaluated: names of the modules that run in evaluation mode.
    """
    if tied := _tied(model, group):
        return tied
    small = slice_model(model, cut)
    failed = where_it_fails(small, run)
    if failed is None:
        return None
    name, error = failed
    module = model.get_submodule(name)
    kind = type(module).__name__
    called = f"{name} ({kind})" if name else f"the forward method of {kind}"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return f"{called} is not supported"
    if name not in evaluated:
        when = "in training mode" if small.training else "for some images"
        return f"{called} reads these channels {when} only"
    lengths = {group.width} | _lengths(model, group)
    held = [each for each, tensor in _own_tensors(module) if lengths & set(tensor.shape)]
    if held and about_sizes(error) and not isinstance(module, nn.Conv2d | nn.Linear):
        listed = ", ".join(held[:4]) + (", ..." if len(held) > 4 else "")
        return f"{called} holds {listed} for these channels, which cannot be cut: {brief(error)}"
    return f"{called} fails without some of these channels: {brief(error)}"


def _tied(model: nn.Module, group: ChannelGroup) -> str | None:
    """Say which module of a group shares a parameter with another one."""
    tied = tied_modules(model)
    return next((tied[slot.module] for slot in group.slots if slot.module in tied), None)


def _lengths(model: nn.Module, group: ChannelGroup) -> set[int]:
    return {axis_length(model.get_submodule(slot.module), slot.axis) for slot in group.slots}


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that a module itself holds: parameters, buffers and plain attributes."""
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)
    yield from ((name, value) for name, value in vars(module).items() if isinstance(value, Tensor))


def hidden_state(model: nn.Module, other: nn.Module) -> str | None:
    """Name an attribute outside of the state dict in which two builds of a network differ, or return None.

    Args:
        model, other: the same network, built twice.
    """
    builds = dict(other.named_modules())
    for name, module in model.named_modules():
        theirs = dict(_unsaved(builds[name])) if name in builds else {}
        for attribute, value in _unsaved(module):
            if not _same(value, theirs.get(attribute)):
                return f"{name}.{attribute}".lstrip(".")
    return None


def _unsaved(module: nn.Module) -> Iterator[tuple[str, object]]:
    """Yield the values of a module itself that its state dict lacks."""
    yield from ((name, module._buffers[name]) for name in module._non_persistent_buffers_set)
    for name, value in vars(module).items():
        computed = {f"{name}_g", f"{name}_orig"} & module._parameters.keys()  # by weight and spectral norm
        if name == "training" or computed:
            continue
        if isinstance(value, Tensor | np.ndarray | int | float | str | list | tuple):
            yield name, value


def left_out(model: nn.Module) -> list[str]:
    """Return the names of the parameters and persistent buffers that the state dict lacks."""
    saved = model.state_dict()
    return [
        key
        for prefix, module in model.named_modules()
        for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        if name not in module._non_persistent_buffers_set
        and (key := f"{prefix}.{name}".lstrip(".")) not in saved
    ]


def _same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other.to(one))
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return np.array_equal(one, other)
    return repr(one) == repr(other)
