"""The network as a list of operations, traced symbolically (torch.fx), proved and put in order."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from amc.errors import AmcError, first_line, out_of_memory
from amc.graph.layers import MapNorm
from amc.models import OptionAShortcut
from amc.scoring.flatten import output_tensors
from amc.scoring.run import copied

ROUNDING = 1e-4
"""Difference that rounding may make between a network and its trace, relative to the largest output."""

_SHAPES = {"shape", "ndim", "dtype", "device", "size", "dim", "numel"}
"""What a forward pass reads of a tensor without its values."""
_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}


class UntraceableError(AmcError):
    """A forward pass that no list of operations describes."""


@dataclass(frozen=True)
class Operations:
    """What a network does with images.

    Attributes:
        nodes: in the order in which they are carried out, without the output.
        constants: tensors that the forward pass makes itself, by the name that the nodes give them.
        returned: the network's output, with nodes in the place of their values.
    """

    nodes: tuple[fx.Node, ...]
    constants: Mapping[str, Tensor]
    returned: Any

    def run(self, root: nn.Module, images: Tensor) -> dict[fx.Node, Any]:
        """Carry all operations out on images (N, C, H, W) and return their values."""
        modules = dict(root.named_modules())
        values: dict[fx.Node, Any] = {}
        for node in self.nodes:
            placed = node.op == "placeholder"
            values[node] = images.clone() if placed else self.call(node, values, root, modules)
        return values

    def prove(self, root: nn.Module, images: Tensor) -> dict[fx.Node, Any]:
        """Return the values for images (N, C, H, W), if they give what ``root`` itself returns.

        Raises:
            UntraceableError: they fail, or give something else.
        """
        with _explained(root):
            values = self.run(root, images)
            same = _alike(fx.map_arg(self.returned, values.__getitem__), root(images.clone()))
        if not same:
            raise UntraceableError(
                f"{type(root).__name__} computes something else than its symbolic trace: its forward pass "
                "is probably replaced or hooked, or depends on what it computed before"
            )
        return values

    def call(
        self, node: fx.Node, values: Mapping[fx.Node, Any], root: nn.Module, modules: Mapping[str, nn.Module]
    ) -> Any:
        """Carry one operation out on the values of its inputs, with the modules and tensors of ``root``."""
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
                made = self.constants.get(str(target))
                return operator.attrgetter(target)(root) if made is None else made.clone()


@torch.no_grad()
def trace_operations(model: nn.Module, images: Tensor) -> Operations:
    """Trace a network, and prove on a few images (N, C, H, W) that the operations compute what it computes.

    Layers that end a branch stand behind the branch that they are added to, where that changes nothing.

    Raises:
        UntraceableError: it cannot be traced symbolically, or computes something else than the trace.
    """
    tracer = _Tracer()
    with _explained(model):
        # A forward pass may keep what it computes: placeholders must not stay in the network.
        graph = tracer.trace(copied(model))
    nodes = [node for node in graph.nodes if node.op != "output"]
    made = {str(node.target) for node in nodes if node.op == "get_attr"}
    constants = {
        name: tensor.clone()
        for name, tensor in vars(tracer.root).items()
        if name in made and isinstance(tensor, Tensor) and not hasattr(model, name)
    }
    modules = dict(model.named_modules())
    output = graph.output_node()
    traced = Operations(tuple(nodes), constants, output.args[0])
    sooner = replace(traced, nodes=tuple(branches_first(nodes, modules)))
    found = traced.prove(model, images)
    other = sooner.run(model, images)
    same = all(
        isinstance(found[node], Tensor) and torch.equal(found[node], other[node])
        for node in output.all_input_nodes
    )
    return sooner if same else traced  # an operation in place can forbid another order


@contextmanager
def _explained(model: nn.Module) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # data-dependent control flow and the like, of many types
        if out_of_memory(error):
            raise
        raise UntraceableError(
            f"{type(model).__name__} cannot be traced for the sequential refit: {first_line(error)}"
        ) from error


def _alike(one: Any, other: Any) -> bool:
    """Whether the floating-point tensors of two outputs are the same up to rounding."""
    pairs = [[tensor for _, tensor in output_tensors(output)] for output in (one, other)]
    return [each.shape for each in pairs[0]] == [each.shape for each in pairs[1]] and all(
        bool((own - its).abs().max() <= ROUNDING * its.abs().max())
        for own, its in zip(*pairs, strict=True)
        if own.numel()
    )


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
        tail = norm_node(node, modules) or node
        other = addend(tail)
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


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # a buffer of one number a channel is cut, so it is no constant

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        layers = OptionAShortcut | nn.Conv2d | nn.Linear | MapNorm  # also the user's subclasses
        return isinstance(m, layers) or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Give the forward pass images and nothing else: other arguments keep their defaults."""
        return root_fn, [self.root, self.create_proxy("placeholder", "images", (), {})]


def norm_node(node: fx.Node, modules: Mapping[str, nn.Module]) -> fx.Node | None:
    """The batch norm with running statistics that alone reads a convolution's output, and reads nothing else.

    Of a layer that runs several times, one norm reads the outputs of all calls.
    """
    users = readers(node)
    if not isinstance(modules[str(node.target)], nn.Conv2d):
        return None
    if len(users) != 1 or users[0].op != "call_module":
        return None
    module = modules[str(users[0].target)]
    if not isinstance(module, MapNorm) or module.running_mean is None:
        return None
    calls, norms = calls_of(node), calls_of(users[0])
    paired = all(len(own := readers(call)) == 1 and own[0] in norms for call in calls)
    return users[0] if paired and len(calls) == len(norms) else None


def readers(node: fx.Node) -> list[fx.Node]:
    """The operations that read the values of another one, not its shape or type alone."""
    return [user for user in node.users if not _reads_shape(user)]


def _reads_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _SHAPES
    return node.target is getattr and node.args[1] in _SHAPES


def calls_of(node: fx.Node) -> list[fx.Node]:
    """All calls of the module that ``node`` calls."""
    return list(node.graph.find_nodes(op="call_module", target=node.target))


def addend(tail: fx.Node) -> fx.Node | None:
    """The other operand of the plain sum that alone reads ``tail``; ``torch.add(..., alpha=2)`` is none."""
    users = readers(tail)
    if len(users) != 1 or users[0].target not in _ADDITIONS or users[0].kwargs.get("alpha", 1) != 1:
        return None
    return next((source for source in users[0].all_input_nodes if source is not tail), None)
