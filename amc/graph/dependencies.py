"""Which channels have to be removed together, from torch-pruning's graph of a copy of the network.

torch-pruning takes unknown operations for elementwise ones, guesses the effect of a reshape from the layers
around it, and follows channels through a split whose sizes are constants in the user's code. Here such
operations are walls (``amc.graph.walls``): a group of channels that reaches one keeps its width, and the wall
is named as the reason.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amc.errors import NotPrunableError, first_line
from amc.graph import torch_pruning_adapter
from amc.graph.axes import ChannelAxes
from amc.graph.layers import LAYERS
from amc.graph.recording import Chunks, OwnNorms, Readings, gradients_everywhere, recorded_readings
from amc.graph.recurrent import recurrent_as_walls
from amc.graph.walls import Judge
from amc.scoring.flatten import output_tensors
from amc.scoring.run import copied, in_eval, settle

_KNOWN_BUFFERS = (nn.modules.batchnorm._NormBase, *LAYERS)
"""Modules whose buffers are cut with the module, or are part of how its weight is computed."""

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
        buffers: names of buffers of one number a channel, which are parameters in the copy.
        over_positions: linear layers that are applied to each channel, and mix its positions.
    """

    graph: Any
    model: nn.Module
    buffers: tuple[str, ...] = ()
    over_positions: frozenset[nn.Module] = frozenset()

    @property
    def layers(self) -> set[str]:
        """Names of the layers that the graph has."""
        return {self.name_of(module) for module in self.graph.module2node if isinstance(module, LAYERS)}

    def name_of(self, module: Any) -> str:
        """Return the name of a module or bare parameter in the network; '' for an operation."""
        return torch_pruning_adapter.name_of(self.graph, module)

    def wall(self, item: Item) -> str | None:
        """Return why channels cannot be followed through an item's operation, or None."""
        return self.graph.walls.get(item.node.module)

    def reduction(self, item: Item) -> str | None:
        """Return what one value an item's operation makes of all channels, or None."""
        return self.graph.reduced.get(item.node.module)

    def across(self, item: Item) -> bool:
        """Return whether an item is what a linear layer over positions reads."""
        reads = not self.graph.is_out_channel_pruning_fn(item.handler)
        return reads and item.node.module in self.over_positions

    def single(self, item: Item) -> bool:
        """Return whether an item is one channel that is broadcast to all channels of a map."""
        return item.node.module in self.graph.single and item.idxs == (0,)

    def per_channel(self, parameter: Any) -> bool:
        """Return whether a bare parameter has one number for each channel of the maps that it meets."""
        return parameter in self.graph.per_channel

    def unsaved(self, name: str) -> bool:
        """Return whether a name is that of a buffer which the state dict lacks."""
        owner, _, own = name.rpartition(".")
        return name in self.buffers and own in self.model.get_submodule(owner)._non_persistent_buffers_set

    def restore_buffers(self) -> None:
        """Make the buffers of the copy buffers again; the state dict lacks those that it lacked."""
        for name in self.buffers:
            owner, _, own = name.rpartition(".")
            module = self.model.get_submodule(owner)
            values = module._parameters.pop(own)
            assert values is not None
            saved = own not in module._non_persistent_buffers_set
            module.register_buffer(own, values.detach(), persistent=saved)

    def groups(self) -> Iterator[list[Item]]:
        """Yield the axes that must be pruned together, the root layer's first.

        Every dense layer is in at least one group.

        Raises:
            NotPrunableError: following the channels takes more than ``WORK_LIMIT`` steps.
        """
        seen: set[nn.Module] = set()
        left = WORK_LIMIT
        for module in list(self.graph.module2node):
            if not isinstance(module, LAYERS) or module in seen:
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


def build_dependencies(model: nn.Module, example: Tensor, ran: Collection[str] = ()) -> Dependencies:
    """Let torch-pruning trace a copy of ``model`` on ``example``, one image (1, C, H, W).

    All parameters of the copy are trainable, as torch-pruning silently skips frozen ones. Its buffers of one
    number a channel are parameters, as gradients do not see buffers. Every tensor that it returns passes
    through one more operation, so that channels that reach the output are marked. What hooks of the copy put
    into ``model`` itself is detached.

    Args:
        ran: names of the layers that run in the forward pass. If some are missing in the graph, as they run
            without gradients, the network is traced with gradients everywhere.

    Raises:
        NotPrunableError: torch-pruning cannot trace the network.
    """
    try:
        found, error = _first_built(model, example, contextlib.nullcontext)
        if found is None or not set(ran) <= found.layers:
            found = _first_built(model, example, gradients_everywhere)[0] or found
    finally:
        settle(model)
    if found is None:
        reason = first_line(error)
        raise NotPrunableError(
            f"torch-pruning cannot trace {type(model).__name__}: {type(error).__name__}: {reason}; "
            "the network uses an operation that the channel graph does not support"
        ) from error
    return found


def _first_built(
    model: nn.Module, example: Tensor, gradients: Callable[[], AbstractContextManager[None]]
) -> tuple[Dependencies | None, Exception]:
    """Trace with the buffers of one number a channel as parameters or, if that fails, as they are.

    Returns:
        The dependencies or None, and the last error.
    """
    error = Exception()
    buffers = _buffers_of_one_axis(model, example)
    for _ in range(3):
        try:
            found = _built(copied(settle(model)), example, buffers, gradients)
        except Exception as failed:  # torch-pruning fails in many ways on graphs that it does not know
            error = failed
            if not buffers:
                break
            buffers = ()
            continue
        fitting = tuple(name for name in buffers if found.per_channel(_parameter(found.model, name)))
        if fitting == buffers:
            return found, error
        buffers = fitting
    return None, error


def _parameter(model: nn.Module, name: str) -> nn.Parameter | None:
    owner, _, own = name.rpartition(".")
    return model.get_submodule(owner)._parameters[own]


def _built(
    twin: nn.Module,
    example: Tensor,
    buffers: tuple[str, ...],
    gradients: Callable[[], AbstractContextManager[None]],
) -> Dependencies:
    twin.eval()
    for name in buffers:
        owner, _, own = name.rpartition(".")
        module = twin.get_submodule(owner)
        values = module._buffers.pop(own)
        assert values is not None
        module.register_parameter(own, nn.Parameter(values))
    for parameter in twin.parameters():
        if parameter.is_floating_point() or parameter.is_complex():
            parameter.requires_grad_(True)
    axes, chunks = ChannelAxes(), Chunks()
    with (
        warnings.catch_warnings(),
        torch.enable_grad(),
        gradients(),
        recurrent_as_walls(twin),
        chunks,
        OwnNorms(twin),
        recorded_readings(twin) as readings,
    ):
        warnings.simplefilter("ignore")
        graph = torch_pruning_adapter.build_graph(
            twin,
            example.detach().clone(),
            Judge(axes, chunks.functions, readings),
            output_transform=_differentiable,
            axes=axes,
        )
    return Dependencies(graph, twin, buffers, _over_positions(readings, axes))


def _over_positions(readings: Readings, axes: ChannelAxes) -> frozenset[nn.Module]:
    """Return the linear layers that mix another axis than the channels of what they read."""
    return frozenset(
        module
        for module, functions in readings.items()
        if isinstance(module, nn.Linear) and {axes.of(function) for function in functions} - {None, -1}
    )


def _buffers_of_one_axis(model: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Return the names of the buffers that may have one number a channel and that stay as they are."""
    twin = in_eval(copied(model))
    found: dict[str, tuple[Tensor, int]] = {}
    for prefix, module in twin.named_modules():
        if isinstance(module, _KNOWN_BUFFERS):
            continue
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point() and 1 < buffer.numel() == max(buffer.shape):
                found[f"{prefix}.{name}".lstrip(".")] = (buffer, buffer._version)
    if found:
        with torch.no_grad():
            twin(example.detach().clone())
    own = dict(twin.named_buffers())
    return tuple(
        name for name, (old, version) in found.items() if own.get(name) is old and old._version == version
    )


def _differentiable(output: object) -> list[Tensor]:
    return [tensor * 1 for _, tensor in output_tensors(output) if tensor.requires_grad]
