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

from amc.graph.axes import ChannelAxes, channels_at, normal_dim, shape_of
from amc.graph.walls import Fold, Front, Verdict
from amc.models.shortcut import OptionAShortcut, slice_shortcut
from amc.third_party import without

CHECKED_VERSION = "1.6.1"

Judge = Callable[[Any], Verdict]
"""Node of an operation -> how channels pass it."""


def import_torch_pruning() -> ModuleType:
    """Import torch-pruning; only on demand, as it is slow."""
    with without("timm"):  # torch-pruning imports it for counts that are not used here, in 5 CPU seconds
        import torch_pruning
    return torch_pruning


def build_graph(
    model: nn.Module,
    example: Tensor,
    judge: Judge,
    output_transform: Callable[[object], list[Tensor]],
    axes: ChannelAxes | None = None,
) -> Any:
    """Trace ``model`` on ``example``, one image (1, C, H, W).

    Args:
        judge: applied to each operation between the layers. One where channels end becomes a wall, without
            dependencies.
        output_transform: from the network's output to the tensors to follow back.
        axes: the channel axes of the traced network. An operand whose one channel serves all channels of the
            result does not depend on them, nor they on it.

    Returns:
        torch-pruning's graph, with four more attributes. ``walls``: operation -> why channels end there.
        ``reduced``: operation -> what one value it makes of all channels, which end there, too. ``single``:
        operations and layers whose one channel is broadcast to all of a map. ``per_channel``: bare parameters
        of one number a channel.
    """
    torch_pruning = import_torch_pruning()
    from torch_pruning.ops import OPTYPE

    known = axes or ChannelAxes()

    class WalledGraph(torch_pruning.DependencyGraph):  # type: ignore[name-defined]  # imported on demand
        def _build_dependency(self, module2node: Mapping[Any, Any]) -> None:
            super()._build_dependency(module2node)
            self.walls: dict[Any, str] = {}
            self.reduced: dict[Any, str] = {}
            self.single: set[Any] = set()
            for module, node in module2node.items():
                if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                    continue
                verdict = judge(node)
                if verdict.wall is not None:
                    self.walls[module] = verdict.wall
                    node.dependencies.clear()
                if verdict.reduced is not None:
                    self.reduced[module] = verdict.reduced
                    _cut_users(node)
                fold = verdict.narrowed or verdict.widened
                if fold is not None:
                    _fold_inputs(node, fold, narrowed=verdict.narrowed is not None)
                if verdict.neutral or verdict.wall is not None or fold is not None:
                    node.type = (
                        OPTYPE.ELEMENTWISE
                    )  # without an index mapping, which torch-pruning would guess
                if node.type == OPTYPE.CONCAT and _joins_channels(node.grad_fn, known):
                    node.enable_index_mapping = True  # a parameter (C, 1, 1) makes torch-pruning doubt it
                self.single |= _cut_broadcast(node, known)
            self.single -= self.reduced.keys()
            parameters = [node for node in module2node.values() if node.type == OPTYPE.PARAMETER]
            self.per_channel = {node.module for node in parameters if _one_a_channel(node, known)}

    graph = WalledGraph()
    graph.REGISTERED_PRUNERS[OPTYPE.IN] = _instance_norm_pruner()
    return graph.build_dependency(
        model,
        (example,),  # torch-pruning unpacks it, and would unpack a batch into its images
        output_transform=output_transform,
        customized_pruners={OptionAShortcut: _shortcut_pruner()},
        verbose=False,
    )


class _Shortened:
    """torch-pruning's index mapping from the longer axis of a ``Fold`` or ``Front`` to the shorter one."""

    def __init__(self, fold: Fold | Front) -> None:
        self._fold = fold

    def __call__(self, pairs: Iterable[Any]) -> list[Any]:
        found: dict[int, Any] = {}  # of each position once: torch-pruning counts them
        for pair in sorted(pairs):
            short = self._fold.short(pair.idx)
            if short is not None:
                found.setdefault(short, index_pair(short, pair.root_idx))
        return list(found.values())


class _Lengthened:
    """torch-pruning's index mapping from the shorter axis of a ``Fold`` or ``Front`` to the longer one."""

    def __init__(self, fold: Fold | Front) -> None:
        self._fold = fold

    def __call__(self, pairs: Iterable[Any]) -> list[Any]:
        return [
            index_pair(long, pair.root_idx) for pair in sorted(pairs) for long in self._fold.long(pair.idx)
        ]


def _fold_inputs(node: Any, fold: Fold | Front, *, narrowed: bool) -> None:
    """Let the positions of an operation's input and of its results differ by a fold."""
    there, back = (_Shortened(fold), _Lengthened(fold)) if narrowed else (_Lengthened(fold), _Shortened(fold))
    for source in node.inputs:
        for dependency in node.dependencies:
            if dependency.target is source:
                dependency.index_mapping[0] = back
        for dependency in source.dependencies:
            if dependency.target is node:
                dependency.index_mapping[0] = there


def _joins_channels(function: Any, axes: ChannelAxes) -> bool:
    """Return whether a concatenation joins channels."""
    ndim = len(shape_of(function))
    return axes.of(function) == normal_dim(function._saved_dim, ndim) - ndim


def _operand_nodes(node: Any) -> list[tuple[Any, tuple[int, ...]]]:
    """Return the nodes of an operation's operands with their shapes; none where they cannot be told apart."""
    inputs = list(node.inputs)
    operands = [(f, index) for f, index in getattr(node.grad_fn, "next_functions", ()) if f is not None]
    known = {id(source.module) for source in inputs if isinstance(source.module, nn.Parameter)}
    listed = [(f, index) for f, index in operands if not hasattr(f, "variable") or id(f.variable) in known]
    if len(listed) != len(inputs):
        return []
    return [(source, shape_of(*operand)) for source, operand in zip(inputs, listed, strict=True)]


def _cut_users(node: Any) -> None:
    """Cut an operation off from what reads its result; its operands stay connected with it."""
    users = {id(user): user for user in node.outputs}.values()
    node.dependencies[:] = [d for d in node.dependencies if not any(d.target is user for user in users)]
    for user in users:
        user.dependencies[:] = [d for d in user.dependencies if d.target is not node]


def _cut_broadcast(node: Any, axes: ChannelAxes) -> set[Any]:
    """Cut an operation off from operands of one channel that serves all; return their modules."""
    if not any(axes.broadcast(node.grad_fn)) or type(node.module).__module__ != "torch_pruning.ops":
        return set()
    axis = axes.of(node.grad_fn)
    assert axis is not None
    operands = _operand_nodes(node)
    wide = [source for source, shape in operands if channels_at(shape, axis) != 1]
    single = [
        source
        for source, shape in operands
        if channels_at(shape, axis) == 1 and not any(source is other for other in wide)
    ]
    for source in single:
        node.dependencies[:] = [d for d in node.dependencies if d.target is not source]
        source.dependencies[:] = [d for d in source.dependencies if d.target is not node]
    return {source.module for source in single}


def _one_a_channel(node: Any, axes: ChannelAxes) -> bool:
    """Return whether a bare parameter has one number for each channel of all maps that it meets."""
    length = node.module.numel()
    if node.module.shape[node.pruning_dim] != length:
        return False
    reached, waiting, met = {id(node)}, [node], False
    while waiting:
        current = waiting.pop()
        for user in {id(output): output for output in current.outputs}.values():
            axis = axes.of(user.grad_fn)
            if axis is None:
                if type(user.module).__module__ != "torch_pruning.ops":
                    return False  # a layer computes something of the parameter
                if id(user) not in reached:
                    reached.add(id(user))
                    waiting.append(user)
                continue
            shapes = [shape for source, shape in _operand_nodes(user) if source is current]
            if not shapes or any(channels_at(shape, axis) != length for shape in shapes):
                return False
            met = True
    return met


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


def _instance_norm_pruner() -> Any:
    """Return torch-pruning's pruner of instance norms, which forgets their statistics, mended."""
    from torch_pruning.pruner.function import InstanceNormPruner

    class StatisticsPruner(InstanceNormPruner):
        def prune_out_channels(self, layer: Any, idxs: Any) -> Any:
            kept = _rest(layer.num_features, idxs)
            for name in ("running_mean", "running_var"):
                if (statistics := getattr(layer, name)) is not None:
                    setattr(layer, name, statistics[kept])
            return super().prune_out_channels(layer, idxs)

        prune_in_channels = prune_out_channels

    return StatisticsPruner()


def _rest(channels: int, dropped: Iterable[int]) -> Tensor:
    gone = set(dropped)
    return torch.tensor([channel for channel in range(channels) if channel not in gone])
