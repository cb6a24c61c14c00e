"""A network carried out operation by operation, as far as a refit has come.

Every block of images is carried as far as the next stop before the next block is, so that its maps are still
in the processor's cache. What a network leaves no trace of is done the cheap way: a batch norm that keeps its
statistics is folded into the convolution before it, and a ReLU or a sum may write into a map that nothing
else reads.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from amc.cutting.folding import fold, own_tensors
from amc.graph.layers import plain_norm
from amc.graph.unfolding import own_forward
from amc.refit.operations import Operations, calls_of, norm_node

_RELUS = {F.relu, torch.relu, "relu"}
_SUMS = {operator.add, torch.add, "add"}
_Values = dict[fx.Node, Any]


@dataclass(frozen=True)
class Plan:
    """How the operations of a network, of any widths, are carried out.

    Attributes:
        operations: all of them.
        norms: convolution -> the batch norm that is folded into it.
        overwriting: ReLU or sum -> the one of its inputs that it writes into.
        last_uses: operation -> the inputs that nothing reads after it.
    """

    operations: Operations
    norms: Mapping[fx.Node, fx.Node]
    overwriting: Mapping[fx.Node, fx.Node]
    last_uses: Mapping[fx.Node, Sequence[fx.Node]]


def make_plan(operations: Operations, model: nn.Module, *, folded: bool) -> Plan:
    """Plan how the operations of a network are carried out.

    Args:
        model: the network, of any widths.
        folded: whether batch norms are folded where they can be: their inputs are not to be had then.
    """
    modules = dict(model.named_modules())
    norms = _foldable(operations.nodes, modules) if folded else {}
    overwriting = {node: source for node in operations.nodes if (source := _overwritten(node, modules))}
    last_use = {source: node for node in operations.nodes for source in node.all_input_nodes}
    last_uses: dict[fx.Node, list[fx.Node]] = {}
    for source, node in last_use.items():
        last_uses.setdefault(node, []).append(source)
    return Plan(operations, norms, overwriting, last_uses)


def _foldable(nodes: Sequence[fx.Node], modules: Mapping[str, nn.Module]) -> dict[fx.Node, fx.Node]:
    found = {}
    for node in nodes:
        module = modules[str(node.target)] if node.op == "call_module" else None
        if not isinstance(module, nn.Conv2d) or len(calls_of(node)) > 1 or not _plain(module):
            continue
        norm = norm_node(node, modules)
        if norm is not None and _usual(modules[str(norm.target)]):
            found[node] = norm
    return found


def _plain(conv: nn.Conv2d) -> bool:
    return conv.padding_mode == "zeros" and not own_forward(conv) and not _hooked(conv)


def _usual(module: nn.Module) -> bool:
    """Whether a module is a batch norm as PyTorch carries it out."""
    return plain_norm(module) and "forward" not in vars(module) and not _hooked(module)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _overwritten(node: fx.Node, modules: Mapping[str, nn.Module]) -> fx.Node | None:
    """Return the input that a ReLU or a sum may write into: one that is new and that nothing else reads."""
    count = 2 if _is_sum(node) else 1 if _is_relu(node, modules) else 0
    inputs = node.all_input_nodes
    if any(node.kwargs.values()) or len(node.args) != count or len(inputs) != count:
        return None  # `inplace=False` is all that may be said beside the inputs
    return next((own for own in inputs if len(own.users) == 1 and _is_new(own, modules)), None)


def _is_sum(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method") and node.target in _SUMS


def _is_relu(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        module = modules[str(node.target)]
        return type(module) is nn.ReLU and "forward" not in vars(module) and not _hooked(module)
    return node.op in ("call_function", "call_method") and node.target in _RELUS


def _is_new(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the value of an operation has memory of its own."""
    if node.op != "call_module":
        return _is_sum(node)
    module = modules[str(node.target)]
    return _plain(module) if isinstance(module, nn.Conv2d) else _usual(module)


class Walk:
    """Carries the operations of one network out on blocks of images.

    Args:
        plan: of the network's operations.
        root: the network.
        blocks: images (N, C, H, W) each.
    """

    def __init__(self, plan: Plan, root: nn.Module, blocks: Sequence[Tensor]) -> None:
        self._plan = plan
        self._root = root
        self._modules = dict(root.named_modules())
        self._images = blocks
        self._values: list[_Values] = [{} for _ in blocks]
        self._skipped = {norm: conv for conv, norm in plan.norms.items()}
        self._done = 0

    def until(self, place: int) -> int:
        """Carry out the first ``place`` operations, those that are not yet; return how many these were."""
        nodes = self._plan.operations.nodes[self._done : place]
        steps = [(node, self._step(node), self._plan.last_uses.get(node, ())) for node in nodes]
        for images, values in zip(self._images, self._values, strict=True):
            for node, step, last in steps:
                values[node] = images.clone() if node.op == "placeholder" else step(values)
                for source in last:
                    del values[source]
        self._done = max(self._done, place)
        return len(nodes)

    def values(self, node: fx.Node) -> list[Any]:
        """Return what an operation gave, block by block; it is there until its last reader is done."""
        return [values[node] for values in self._values]

    def alive(self, node: fx.Node) -> bool:
        """Whether the values of an operation are there."""
        return all(node in values for values in self._values)

    def _step(self, node: fx.Node) -> Callable[[_Values], Any]:
        """Return what makes an operation's value of those before it, with the network's present tensors."""
        plan = self._plan
        if node in self._skipped:
            return operator.itemgetter(self._skipped[node])
        if node in plan.norms:
            return self._folded(node, plan.norms[node])
        if node in plan.overwriting:
            return self._overwriting(node, plan.overwriting[node])
        return lambda values: plan.operations.call(node, values, self._root, self._modules)

    def _folded(self, node: fx.Node, norm: fx.Node) -> Callable[[_Values], Tensor]:
        conv, after = self._modules[str(node.target)], self._modules[str(norm.target)]
        assert isinstance(conv, nn.Conv2d)
        source = node.all_input_nodes[0]
        own = fold(own_tensors(conv), own_tensors(after), after)
        shape: tuple[Any, ...] = conv.stride, conv.padding, conv.dilation, conv.groups
        return lambda values: F.conv2d(values[source], own["weight"], own["bias"], *shape)

    def _overwriting(self, node: fx.Node, source: fx.Node) -> Callable[[_Values], Any]:
        if len(node.all_input_nodes) == 1:
            return lambda values: values[source].relu_()
        other = next(each for each in node.all_input_nodes if each is not source)
        plan = self._plan

        def add(values: _Values) -> Any:
            one, two = values[source], values[other]
            tensors = isinstance(one, Tensor) and isinstance(two, Tensor)
            if tensors and (one.shape, one.dtype) == (two.shape, two.dtype):
                return one.add_(two)
            return plan.operations.call(node, values, self._root, self._modules)

        return add
