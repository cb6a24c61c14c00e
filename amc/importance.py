"""Channel orders: which channels of a group stay at each width.

A scorer is a callable ``(group, weights) -> scores`` of length ``group.width``; higher stays longer. The
order is nested: the channels kept at a width are the first so many of one fixed permutation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from amc.errors import AmcError
from amc.graph import ChannelGroup, Graph, Slot

Scorer = Callable[[ChannelGroup, Mapping[str, nn.Module]], Tensor]


def _reader_weights(group: ChannelGroup, modules: Mapping[str, nn.Module]) -> list[Tensor]:
    """Return, for each layer that reads the group, its weights as (channels, everything else)."""
    slots = [slot for slot in group.slots if slot.axis == "in" and slot.module in group.readers]
    return [_by_channel(modules[slot.module], slot) for slot in slots]


def _by_channel(module: nn.Module, slot: Slot) -> Tensor:
    weight = module.weight.detach().double()
    assert isinstance(weight, Tensor)
    index = torch.tensor(slot.positions)
    columns = weight.transpose(0, 1).flatten(1)
    return columns[index].flatten(1)


def _norm(order: int) -> Scorer:
    def score(group: ChannelGroup, modules: Mapping[str, nn.Module]) -> Tensor:
        # Each reader counts alike: a large layer must not drown the others of a residual stage.
        norms = [w.norm(p=order, dim=1) for w in _reader_weights(group, modules)]
        total = torch.zeros(group.width, dtype=torch.float64)
        for norm in norms:
            total += norm / norm.sum().clamp(min=torch.finfo(torch.float64).tiny)
        return total

    return score


def _random(group: ChannelGroup, modules: Mapping[str, nn.Module]) -> Tensor:
    # A seed from the group's place, so that the order is the same in every process.
    generator = torch.Generator().manual_seed(sum(group.name.encode()) * 1009 + group.width)
    return torch.rand(group.width, dtype=torch.float64, generator=generator)


SCORERS: dict[str, Scorer] = {"l1": _norm(1), "l2": _norm(2), "random": _random}
"""``l1``: L1 norm of the readers' weights, as in AMC's official code; ``l2``: Euclidean; ``random``: seeded."""


def channel_orders(graph: Graph, model: nn.Module, name: str) -> dict[str, Tensor]:
    """Return for each group a permutation of its channels, most important first.

    Raises:
        AmcError: unknown order.
    """
    if name not in SCORERS:
        raise AmcError(f"compressor.order is {name!r}; expected one of {', '.join(SCORERS)}")
    modules = dict(model.named_modules())
    orders = {}
    for group in graph.groups:
        scores = SCORERS[name](group, modules)
        orders[group.name] = torch.argsort(scores, descending=True, stable=True)
    return orders
