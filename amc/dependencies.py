"""torch-pruning's dependency graph of a copy of the network, taught about our own modules."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amc.errors import AmcError
from amc.models import OptionAShortcut


@dataclass(frozen=True)
class Dependencies:
    """torch-pruning's graph of a copy of the network, for one tracing or one surgery."""

    graph: Any
    model: nn.Module

    def name_of(self, module: Any) -> str:
        """Name of a module in the network ('' for an operation that is no module)."""
        return self.graph._module2name.get(module, "")


def build_dependencies(model: nn.Module, example: Tensor) -> Dependencies:
    """Let torch-pruning trace a copy of ``model``.

    The copy has every parameter trainable, since torch-pruning silently skips frozen ones, and its output
    passes through one more operation, so that channels which reach the output are marked as such.
    """
    import torch_pruning as tp

    twin = copy.deepcopy(model).eval()
    for parameter in twin.parameters():
        parameter.requires_grad_(True)
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph = tp.DependencyGraph().build_dependency(
                twin,
                example.detach().clone(),
                output_transform=lambda output: output * 1,
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
