"""Everything that uses private names of torch-pruning, checked with torch-pruning 1.6.1.

The private names are ``_helpers._HybridIndex``, ``DependencyGraph._build_dependency`` and the attributes
``_module2name`` and ``_param_to_name`` of a built graph. ``tests/amc/graph/test_torch_pruning_adapter.py``
fails when one of them is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from amc.models.shortcut import OptionAShortcut, slice_shortcut
from amc.third_party import without

CHECKED_VERSION = "1.6.1"

Judge = Callable[[Any], tuple[bool, str | None]]
"""Node of an operation -> whether every channel keeps its index, and why channels end there (or None)."""


def import_torch_pruning() -> ModuleType:
    """Import torch-pruning; only on demand, as it is slow."""
    with without("timm"):  # torch-pruning imports it for counts that are not used here, in 5 CPU seconds
        import torch_pruning
    return torch_pruning


def build_graph(
    model: nn.Module, example: Tensor, judge: Judge, output_transform: Callable[[object], list[Tensor]]
) -> Any:
    """Trace ``model`` on ``example``, one image (1, C, H, W).

    Args:
        judge: applied to each operation between the layers. One where channels end becomes a wall, without
            dependencies.
        output_transform: from the network's output to the tensors to follow back.

    Returns:
        torch-pruning's graph, with a further attribute ``walls``: operation -> why channels end there.
    """
    torch_pruning = import_torch_pruning()
    from torch_pruning.ops import OPTYPE

    class WalledGraph(torch_pruning.DependencyGraph):  # type: ignore[name-defined]  # imported on demand
        def _build_dependency(self, module2node: Mapping[Any, Any]) -> None:
            super()._build_dependency(module2node)
            self.walls: dict[Any, str] = {}
            for module, node in module2node.items():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    continue
                neutral, reason = judge(node)
                if reason is not None:
                    self.walls[module] = reason
                    node.dependencies.clear()
                if neutral or reason is not None:
                    node.type = (
                        OPTYPE.ELEMENTWISE
                    )  # without an index mapping, which torch-pruning would guess

    return WalledGraph().build_dependency(
        model,
        example,
        output_transform=output_transform,
        customized_pruners={OptionAShortcut: _shortcut_pruner()},
        verbose=False,
    )


def name_of(graph: Any, module: Any) -> str:
    """Return the name of a module or bare parameter in the traced network; '' for an operation."""
    if isinstance(module, nn.Parameter):
        return str(graph._param_to_name.get(module, "a parameter"))
    return str(graph._module2name.get(module, ""))


def index_pair(index: int, root_index: int) -> Any:
    """Return a position on an axis together with the root's channel that owns it: ``.idx``, ``.root_idx``."""
    from torch_pruning._helpers import _HybridIndex

    return _HybridIndex(idx=index, root_idx=root_index)


def _shortcut_pruner() -> Any:
    """Return the torch-pruning adapter of the option-A shortcut, which has an input and an output axis."""
    from torch_pruning.pruner.function import BasePruningFunc

    class ShortcutPruner(BasePruningFunc):
        TARGET_MODULES = OptionAShortcut

        def prune_out_channels(self, layer: OptionAShortcut, idxs: Iterable[int]) -> OptionAShortcut:
            slice_shortcut(layer, None, _rest(layer.out_channels, idxs))
            return layer

        def prune_in_channels(self, layer: OptionAShortcut, idxs: Iterable[int]) -> OptionAShortcut:
            slice_shortcut(layer, _rest(layer.in_channels, idxs), None)
            return layer

        def get_out_channels(self, layer: OptionAShortcut) -> int:
            return layer.out_channels

        def get_in_channels(self, layer: OptionAShortcut) -> int:
            return layer.in_channels

    return ShortcutPruner()


def _rest(channels: int, dropped: Iterable[int]) -> Tensor:
    gone = set(dropped)
    return torch.tensor([channel for channel in range(channels) if channel not in gone])
