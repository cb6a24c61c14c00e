"""Removal of channels by torch-pruning: a path to the pruned network that shares no code with slicing."""

from __future__ import annotations

from collections import defaultdict

from torch import nn

from amc.cutting.slicing import Cut
from amc.graph.dependencies import build_dependencies
from amc.graph.groups import ChannelGroup, Graph
from amc.graph.layers import blank_image
from amc.scoring.run import settle


def surgery(model: nn.Module, graph: Graph, cut: Cut) -> nn.Module:
    """Remove the dropped channels of a copy of ``model`` through torch-pruning; frozen parameters stay so."""
    names = [layer.name for layer in graph.layers]
    dependencies = build_dependencies(model, blank_image(model, graph.input_shape), names)
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
    trained = {name: own.requires_grad for name, own in model.named_parameters(remove_duplicate=False)}
    for name, own in dependencies.model.named_parameters(remove_duplicate=False):
        own.requires_grad_(trained[name])
    return settle(dependencies.model)
