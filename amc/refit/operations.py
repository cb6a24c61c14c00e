"""The network as a list of operations, traced symbolically (torch.fx) and put in order."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from amc.models import OptionAShortcut

_Values = dict[fx.Node, list[Any]]
"""Results of operations, for every block of images."""


_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}


def branches_first(nodes: Sequence[fx.Node], modules: Mapping[str, nn.Module]) -> list[fx.Node]:
    """Order operations such that what a layer's output is added to comes before the layer, where it can.

    A residual block computes its shortcut last. The layer that ends the other branch can only make up for the
    error of the shortcut if that is there already. Of two layers that end the two branches the later one in
    ``nodes`` is moved before the other.
    """
    order = list(nodes)
    settled: set[fx.Node] = set()
    for node in nodes:
        if node.op != "call_module" or not isinstance(modules[str(node.target)], nn.Conv2d | nn.Linear):
            continue
        tail = _norm_after(node, modules) or node
        other = _addend(tail)
        if other is None or other in settled:
            continue
        settled.add(tail)
        place = order.index(node)
        later = order[place:]
        needed = {other}
        for candidate in reversed(later):
            if candidate in needed:
                needed.update(candidate.all_input_nodes)
        if other in later and node not in needed:
            order[place:] = sorted(later, key=lambda each: each not in needed)  # stable
    return order


@torch.no_grad()
def _run(
    order: Sequence[fx.Node],
    root: nn.Module,
    modules: Mapping[str, nn.Module],
    images: Tensor,
    wanted: Sequence[fx.Node],
) -> list[Any]:
    """Carry operations out in an order and return the values that are wanted."""
    values: dict[fx.Node, Any] = {}
    for node in order:
        values[node] = images.clone() if node.op == "placeholder" else _call(node, values, root, modules)
    return [values[node] for node in wanted]


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # a buffer of one number a channel is cut, so it is no constant

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        layers = (OptionAShortcut, nn.Conv2d, nn.Linear, nn.BatchNorm2d)  # also the user's subclasses
        return isinstance(m, layers) or super().is_leaf_module(m, module_qualified_name)


def _call(
    node: fx.Node, values: Mapping[fx.Node, Any], root: nn.Module, modules: Mapping[str, nn.Module]
) -> Any:
    arguments = fx.map_arg(node.args, values.__getitem__)
    options = fx.map_arg(node.kwargs, values.__getitem__)
    target = node.target
    if callable(target):
        return target(*arguments, **options)
    match node.op:
        case "call_module":
            return modules[target](*arguments, **options)
        case "call_method":
            return getattr(arguments[0], target)(*arguments[1:], **options)
        case _:
            return operator.attrgetter(target)(root)


def _norm_after(node: fx.Node, modules: Mapping[str, nn.Module]) -> fx.Node | None:
    """The batch norm with running statistics that alone reads a layer's output."""
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_module":
        return None
    module = modules[str(users[0].target)]
    tracked = isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
    return users[0] if tracked else None


def _addend(tail: fx.Node) -> fx.Node | None:
    """The other operand of the sum that alone reads ``tail``."""
    users = list(tail.users)
    if len(users) != 1 or users[0].target not in _ADDITIONS:
        return None
    return next((source for source in users[0].all_input_nodes if source is not tail), None)
