"""Which channels have to be removed together, from torch-pruning's graph of a copy of the network.

torch-pruning takes unknown operations for elementwise ones, guesses the effect of a reshape from the layers
around it, and follows channels through a split whose sizes are constants in the user's code. Here such
operations are walls (``amc.graph.walls``): a group of channels that reaches one keeps its width, and the wall
is named as the reason.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amc.errors import NotPrunableError, first_line
from amc.graph import torch_pruning_adapter
from amc.graph.recurrent import recurrent_as_walls
from amc.graph.walls import judge
from amc.scoring.flatten import output_tensors

WORK_LIMIT = 20_000_000
"""Steps of single channels through single operations; a network that needs more is refused."""


@dataclass(frozen=True)
class Item:
    """One axis of a module or operation, with the channels of a root layer on it.

    Attributes:
        node: torch-pruning's node of the module or operation.
        handler: torch-pruning's function that would remove channels there; it determines the axis.
        idxs: positions on the axis, ascending.
        root_idxs: for each position, the channel of the root that owns it.
    """

    node: Any
    handler: Any
    idxs: tuple[int, ...]
    root_idxs: tuple[int, ...]


@dataclass(frozen=True)
class Dependencies:
    """torch-pruning's graph of a copy of the network, for one tracing or one surgery.

    Attributes:
        graph: torch-pruning's graph, with walls.
        model: the copy.
    """

    graph: Any
    model: nn.Module

    def name_of(self, module: Any) -> str:
        """Return the name of a module or bare parameter in the network; '' for an operation."""
        return torch_pruning_adapter.name_of(self.graph, module)

    def wall(self, item: Item) -> str | None:
        """Return why channels cannot be followed through an item's operation, or None."""
        return self.graph.walls.get(item.node.module)

    def groups(self) -> Iterator[list[Item]]:
        """Yield the axes that must be pruned together, the root layer's first.

        Every dense layer is in at least one group.

        Raises:
            NotPrunableError: following the channels takes more than ``WORK_LIMIT`` steps.
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
        own = {torch_pruning_adapter.index_pair(i, i) for i in range(pruner.get_out_channels(root))}
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
                    raise NotPrunableError(
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


def _mapped(dependency: Any, pairs: list[Any]) -> list[Any]:
    for mapping in dependency.index_mapping:
        if mapping is not None:
            pairs = mapping(pairs)
    return pairs


def _item(node: Any, handler: Any, pairs: Iterable[Any]) -> Item:
    ordered = sorted(pairs)
    return Item(node, handler, tuple(p.idx for p in ordered), tuple(p.root_idx for p in ordered))


def build_dependencies(model: nn.Module, example: Tensor) -> Dependencies:
    """Let torch-pruning trace a copy of ``model`` on ``example``, one image (1, C, H, W).

    All parameters of the copy are trainable, as torch-pruning silently skips frozen ones. Every tensor that
    it returns passes through one more operation, so that channels that reach the output are marked.

    Raises:
        NotPrunableError: torch-pruning cannot trace the network.
    """
    twin = copy.deepcopy(model).eval()
    for parameter in twin.parameters():
        parameter.requires_grad_(True)
    try:
        with warnings.catch_warnings(), torch.enable_grad(), recurrent_as_walls(twin):
            warnings.simplefilter("ignore")
            graph = torch_pruning_adapter.build_graph(
                twin, example.detach().clone(), judge, output_transform=_differentiable
            )
    except Exception as error:  # torch-pruning fails in many ways on graphs that it does not know
        reason = first_line(error)
        raise NotPrunableError(
            f"torch-pruning cannot trace {type(model).__name__}: {type(error).__name__}: {reason}; "
            "the network uses an operation that the channel graph does not support"
        ) from error
    return Dependencies(graph, twin)


def _differentiable(output: object) -> list[Tensor]:
    return [tensor * 1 for _, tensor in output_tensors(output) if tensor.requires_grad]
