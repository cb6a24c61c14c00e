"""Zeroing of channels: the network keeps its dense shapes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from amc.cutting.slicing import Kept
from amc.graph.groups import Graph
from amc.models import OptionAShortcut


def zero_model(model: nn.Module, graph: Graph, kept: Kept) -> nn.Module:
    """Return a dense-shaped copy whose removed channels are zero where made and unread where used."""
    zeroed = copy.deepcopy(model)
    modules = dict(zeroed.named_modules())
    with torch.no_grad():
        for group in graph.groups:
            dropped = torch.ones(group.width, dtype=torch.bool)
            dropped[kept[group.name]] = False
            for slot in group.slots:
                indices = torch.tensor(slot.positions)[dropped].flatten()
                module = modules[slot.module]
                if isinstance(module, nn.PReLU):
                    continue
                if isinstance(module, OptionAShortcut):
                    silent = indices if slot.axis == "out" else torch.isin(module.source, indices)
                    module.source[silent] = -1
                    continue
                if slot.axis == "in":
                    module.weight[:, indices] = 0
                    continue
                for tensor in (module.weight, module.bias):
                    if isinstance(tensor, Tensor):
                        tensor[indices] = 0
    return zeroed
