"""torch-pruning's dependency graph of a copy of the network, taught where it would be wrong.

Left alone, torch-pruning takes any operation that it does not know for an elementwise one, guesses what a
reshape does from the layers around it, and follows channels through a split whose sizes are written in the
user's code. Here such operations are walls: a group of channels that touches one is left whole, and the wall
is named.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from amc.errors import AmcError
from amc.models import OptionAShortcut
from amc.scoring.flatten import output_tensors
from amc.third_party import without

WORK_LIMIT = 20_000_000
"""Steps of single channels through single operations; a network that needs more is refused at once."""

_WALLS = {
    "pixelshuffle": "pixel shuffle moves channels into space",
    "pixelunshuffle": "pixel unshuffle moves space into channels",
    "bmm": "a matrix product mixes the channels",
    "scaleddotproduct": "attention mixes the channels",
    "stack": "a stack puts the channels on a new axis",
    "repeat": "the channels are repeated",
    "im2col": "an unfold moves space into channels",
    "cumsum": "a cumulative sum mixes positions",
}
"""Backward functions (parts of their names) through which no channel can be followed, and why."""


@dataclass(frozen=True)
class Item:
    """One axis that channels of a root layer lie on.

    Attributes:
        node: torch-pruning's node of the module or operation.
        handler: what torch-pruning would prune it with, which tells the axis.
        idxs: positions on the axis, ascending.
        root_idxs: the root's channel that owns each.
    """

    node: Any
    handler: Any
    idxs: tuple[int, ...]
    root_idxs: tuple[int, ...]


@dataclass(frozen=True)
class Dependencies:
    """torch-pruning's graph of a copy of the network, for one tracing or one surgery."""

    graph: Any
    model: nn.Module

    def name_of(self, module: Any) -> str:
        """Name of a module or bare parameter in the network ('' for an operation, which is neither)."""
        if isinstance(module, nn.Parameter):
            return str(self.graph._param_to_name.get(module, "a parameter"))
        return str(self.graph._module2name.get(module, ""))

    def wall(self, item: Item) -> str | None:
        """Why channels cannot be followed through an item's operation, or None."""
        return self.graph.walls.get(item.node.module)

    def groups(self) -> Iterator[list[Item]]:
        """Yield what must be pruned together, the root layer first; every dense layer is in at least one.

        Raises:
            AmcError: following the channels takes more than ``WORK_LIMIT`` steps.
        """
        seen: set[nn.Module] = set()
        left = WORK_LIMIT
        for module in list(self.graph.module2node):
            if not isinstance(module, nn.Conv2d | nn.Linear) or module in seen:
                continue
            items, steps = self._follow(module, left)
            left -= steps
            seen.update(i.node.module for i in items if self.graph.is_out_channel_pruning_fn(i.handler))
            yield items

    def _follow(self, root: nn.Module, limit: int) -> tuple[list[Item], int]:
        """Follow the output channels of a layer through the network; also return the steps taken."""
        pruner = self.graph.get_pruner_of_module(root)
        start = (self.graph.module2node[root], pruner.prune_out_channels)
        own = {_pair(i, i) for i in range(pruner.get_out_channels(root))}
        reached: dict[tuple[Any, Any], set[Any]] = {start: set(own)}
        waiting, steps = [(start, own)], 0
        while waiting:
            (node, handler), pairs = waiting.pop()
            for dependency in node.dependencies:
                if not dependency.is_triggered_by(handler):
                    continue
                moved = set(_mapped(dependency, list(pairs)))
                steps += len(moved) + 1
                if steps > limit:
                    raise AmcError(
                        f"{type(self.model).__name__}: following the channels of "
                        f"{self.name_of(root)!r} through the network takes more than {WORK_LIMIT:,} steps; "
                        "its operations rearrange channels in a way that cannot be traced"
                    )
                place = (dependency.target, dependency.handler)
                new = moved - reached.setdefault(place, set())
                if new:
                    reached[place] |= new
                    waiting.append((place, new))
        items = [_item(node, handler, pairs) for (node, handler), pairs in reached.items() if pairs]
        return items, steps


def _pair(index: int, root_index: int) -> Any:
    from torch_pruning._helpers import _HybridIndex

    return _HybridIndex(idx=index, root_idx=root_index)


def _mapped(dependency: Any, pairs: list[Any]) -> list[Any]:
    for mapping in dependency.index_mapping:
        if mapping is not None:
            pairs = mapping(pairs)
    return pairs


def _item(node: Any, handler: Any, pairs: Iterable[Any]) -> Item:
    ordered = sorted(pairs)
    return Item(node, handler, tuple(p.idx for p in ordered), tuple(p.root_idx for p in ordered))


def build_dependencies(model: nn.Module, example: Tensor) -> Dependencies:
    """Let torch-pruning trace a copy of ``model``.

    The copy has every parameter trainable, since torch-pruning silently skips frozen ones, and every tensor
    that it returns passes through one more operation, so that channels which reach the output are marked.
    """
    twin = copy.deepcopy(model).eval()
    for parameter in twin.parameters():
        parameter.requires_grad_(True)
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph = _graph_class()().build_dependency(
                twin,
                example.detach().clone(),
                output_transform=_differentiable,
                customized_pruners={OptionAShortcut: _shortcut_pruner()},
                verbose=False,
            )
    except Exception as error:  # torch-pruning fails in many ways on graphs that it does not know
        reason = str(error).strip().split("\n", 1)[0]
        raise AmcError(
            f"torch-pruning cannot trace {type(model).__name__}: {type(error).__name__}: {reason}; "
            "the network uses an operation that the channel graph does not support"
        ) from error
    return Dependencies(graph, twin)


def _differentiable(output: object) -> list[Tensor]:
    return [tensor * 1 for _, tensor in output_tensors(output) if tensor.requires_grad]


def _graph_class() -> type[Any]:
    """torch-pruning's graph with walls; a function, as torch-pruning is imported only when it is needed."""
    with without("timm"):  # which torch-pruning imports for counts that are not used here, in 5 CPU seconds
        from torch_pruning import DependencyGraph
    from torch_pruning.ops import OPTYPE

    class WalledGraph(DependencyGraph):
        def _build_dependency(self, module2node: dict[Any, Any]) -> None:
            super()._build_dependency(module2node)
            self.walls: dict[Any, str] = {}
            for module, node in module2node.items():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    continue
                neutral, reason = _judge(node)
                if reason is not None:
                    self.walls[module] = reason
                    node.dependencies.clear()
                if neutral or reason is not None:
                    node.type = OPTYPE.ELEMENTWISE  # no index mapping: torch-pruning would guess one

    return WalledGraph


def _judge(node: Any) -> tuple[bool, str | None]:
    """Whether an operation leaves every channel where it is, and else why channels end there, or None."""
    kind = node.grad_fn.name().lower() if hasattr(node.grad_fn, "name") else ""
    if type(node.module).__module__ != "torch_pruning.ops":
        return False, None  # a module of the network, which has a pruner of its own
    for part, reason in _WALLS.items():
        if kind.startswith(part):
            return False, reason
    if kind.startswith("cat"):
        return False, _judge_concat(node)
    if not hasattr(node.grad_fn, "_saved_self_sym_sizes"):
        return False, None
    before = tuple(node.grad_fn._saved_self_sym_sizes)
    if kind.startswith(("view", "reshape", "unsafeview", "expand")):
        return _judge_reshape(before, tuple(node.grad_fn._input_metadata[0].shape))
    if kind.startswith(("split", "slice", "unbind")):
        dim = _dim(node.grad_fn._saved_dim, len(before))
        if dim not in _channel_dims(before) or _whole(node.grad_fn, before[dim]):
            return True, None
        return False, "the forward pass splits the channels at places that are written in its code"
    return False, None


def _judge_concat(node: Any) -> str | None:
    """Why channels end at a concatenation, or None; the sizes of its parts, which are known, are noted."""
    shape = tuple(node.grad_fn._input_metadata[0].shape)
    dim = _dim(node.grad_fn._saved_dim, len(shape))
    if len(shape) == 4 and dim == 3:
        return "maps are concatenated along their last axis"
    if dim == 1:
        parts = node.grad_fn.next_functions
        if any(function is None for function, _ in parts) or len(parts) != len(node.inputs):
            return "a constant is concatenated to the channels"
        node.module.concat_sizes = [function._input_metadata[index].shape[1] for function, index in parts]
    return None


def _judge_reshape(before: Sequence[int], after: Sequence[int]) -> tuple[bool, str | None]:
    """A reshape keeps the channels, flattens a map's, or is a wall."""
    if len(before) == 4 and tuple(after) == (before[0], prod(before[1:])):
        return before[1] == after[1], None  # flattened, which torch-pruning maps
    shuffled = {len(before), len(after)} == {4, 5} and before[-2:] == after[-2:] and before[1] != after[1]
    kept_first = len(before) in (3, 4) and len(after) > 1 and before[:2] == after[:2]
    kept_last = before[-1:] == after[-1:]
    if not shuffled and (kept_first or kept_last or _only_ones_differ(before, after)):
        return True, None
    return False, f"a reshape from {_text(before)} to {_text(after)} rearranges the channels"


def _only_ones_differ(before: Sequence[int], after: Sequence[int]) -> bool:
    return [n for n in before if n != 1] == [n for n in after if n != 1]


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _channel_dims(shape: Sequence[int]) -> tuple[int, ...]:
    """Axes on which channels may lie: the second of maps and vectors, and the last of tokens."""
    return {2: (1,), 3: (1, 2), 4: (1,)}.get(len(shape), tuple(range(1, len(shape))))


def _dim(saved: int, ndim: int) -> int:
    """A saved axis; autograd keeps negative ones as huge unsigned numbers."""
    return (saved - 2**64 if saved > 2**32 else saved) % ndim


def _whole(grad_fn: Any, size: int) -> bool:
    """Whether a slice takes everything."""
    if not hasattr(grad_fn, "_saved_step"):
        return False
    return grad_fn._saved_start == 0 and grad_fn._saved_end >= size and grad_fn._saved_step == 1


def _shortcut_pruner() -> Any:
    """Teach torch-pruning that an option-A shortcut has an input and an output axis of its own."""
    from torch_pruning.pruner.function import BasePruningFunc

    class ShortcutPruner(BasePruningFunc):
        TARGET_MODULES = OptionAShortcut

        def prune_out_channels(self, layer: OptionAShortcut, idxs: Iterable[int]) -> OptionAShortcut:
            dropped = set(idxs)
            keep = torch.tensor([i for i in range(layer.out_channels) if i not in dropped])
            slice_shortcut(layer, None, keep)
            return layer

        def prune_in_channels(self, layer: OptionAShortcut, idxs: Iterable[int]) -> OptionAShortcut:
            dropped = set(idxs)
            keep = torch.tensor([i for i in range(layer.in_channels) if i not in dropped])
            slice_shortcut(layer, keep, None)
            return layer

        def get_out_channels(self, layer: OptionAShortcut) -> int:
            return layer.out_channels

        def get_in_channels(self, layer: OptionAShortcut) -> int:
            return layer.in_channels

    return ShortcutPruner()


def slice_shortcut(module: OptionAShortcut, keep_in: Tensor | None, keep_out: Tensor | None) -> None:
    """Keep the given channels of an option-A shortcut, in place; a removed source becomes a zero channel."""
    source = module.source
    if keep_out is not None:
        source = source[keep_out]
    if keep_in is not None:
        moved = torch.full((module.in_channels,), -1, dtype=source.dtype, device=source.device)
        moved[keep_in] = torch.arange(len(keep_in), dtype=source.dtype, device=source.device)
        source = torch.where(source >= 0, moved[source.clamp(min=0)], source)
        module.in_channels = len(keep_in)
    module.source = source
    module.out_channels = len(source)
