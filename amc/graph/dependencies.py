"""torch-pruning's dependency graph of a copy of the network, taught where it would be wrong.

Left alone, torch-pruning takes any operation that it does not know for an elementwise one, guesses what a
reshape does from the layers around it, and follows channels through a split whose sizes are written in the
user's code. Here such operations are walls: a group of channels that touches one is left whole, and the wall
is named.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amc.errors import AmcError, first_line
from amc.graph.walls import _judge
from amc.models import OptionAShortcut
from amc.models.shortcut import slice_shortcut
from amc.scoring.flatten import output_tensors
from amc.third_party import without

WORK_LIMIT = 20_000_000
"""Steps of single channels through single operations; a network that needs more is refused at once."""


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
        reason = first_line(error)
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
