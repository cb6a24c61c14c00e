"""Zeroing of channels: the network keeps its dense shapes."""

from __future__ import annotations

import torch
from torch import nn

from amc.cutting.modules import silence, silence_bare
from amc.cutting.slicing import Cut
from amc.graph.groups import Graph
from amc.scoring.run import copied


def zero_model(model: nn.Module, graph: Graph, cut: Cut) -> nn.Module:
    """Return a dense-shaped copy whose removed channels are zero where made and unread where used."""
    zeroed = copied(model)
    modules = dict(zeroed.named_modules())
    for group in graph.groups:
        dropped = torch.ones(group.width, dtype=torch.bool)
        dropped[cut.kept[group.name]] = False
        for slot in group.slots:
            module, indices = modules[slot.module], torch.tensor(slot.positions)[dropped].flatten()
            if slot.tensor is None:
                silence(module, slot.axis, indices)
            else:
                silence_bare(module, slot.tensor, slot.dim, indices)
    return zeroed


def with_drawn_buffers(model: nn.Module, graph: Graph, generator: torch.Generator) -> nn.Module:
    """Return the network with random numbers in the buffers that channel groups hold.

    A fresh network has the same number for every channel there, which would hide that the wrong ones stay.
    It is a copy, unless there are no such buffers.
    """
    bare = {(slot.module, slot.tensor) for group in graph.groups for slot in group.slots if slot.tensor}
    buffers = [
        (module, name) for module, name in sorted(bare) if name in model.get_submodule(module)._buffers
    ]
    if not buffers:
        return model
    drawn = copied(model)
    for module, name in buffers:
        getattr(drawn.get_submodule(module), name).uniform_(0.5, 1.5, generator=generator)
    return drawn
