"""Removal of channels by torch-pruning: a path to the pruned network that shares no code with slicing."""

from __future__ import annotations

from collections import defaultdict

from torch import nn

from amc.cutting.slicing import Cut
from amc.graph.dependencies import build_dependencies
from amc.graph.groups import ChannelGroup, Graph
from amc.graph.layers import noise_image
from amc.scoring.run import settle


def surgery(model: nn.Module, graph: Graph, cut: Cut) -> nn.Module:
    """Remove the dropped channels of a copy of ``model`` through torch-pruning; frozen parameters stay so."""
    names = [layer.name for layer in graph.layers]
    dependencies = build_dependencies(model, noise_image(model, graph.input_shape), names)
    modules = dict(dependencies.model.named_modules())
    by_root: dict[str, list[ChannelGroup]] = defaultdict(list)
    for group in graph.groups:
        by_root[group.root].append(group)
    for root, groups in by_root.items():
        dropped: list[int] = []
        for group in groups:
            stays = set(cut.kept[group.name].tolist())
            dropped += [c for i, own in enumerate(group.root_channels) if i not in stays for c in own]
        if not dropped:
            continue
        module = modules[root]
        prune_out = dependencies.graph.get_pruner_of_module(module).prune_out_channels
        dependencies.graph.get_pruning_group(module, prune_out, sorted(dropped)).prune(record_history=False)
    dependencies.restore_buffers()
    _put_back_buffers(dependencies.model, model, graph)
    trained = {name: own.requires_grad for name, own in model.named_parameters(remove_duplicate=False)}
    for name, own in dependencies.model.named_parameters(remove_duplicate=False):
        own.requires_grad_(trained[name])
    return settle(dependencies.model)


def _put_back_buffers(cut: nn.Module, model: nn.Module, graph: Graph) -> None:
    """Give the buffers that no channels lie on the values that they had before the network was traced."""
    slots = [slot for group in graph.groups for slot in group.slots]
    modules = {slot.module for slot in slots if slot.tensor is None}
    bare = {(slot.module, slot.tensor) for slot in slots}
    before = dict(model.named_modules())
    for name, module in cut.named_modules():
        for own, values in before[name]._buffers.items():
            now = module._buffers.get(own)
            if values is None or now is None or values.shape != now.shape or (name, own) in bare:
                continue
            if name not in modules or values.ndim == 0:  # a number of its own lies on no channels
                module._buffers[own] = values.detach().clone()
