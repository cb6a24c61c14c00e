"""Channel orders: which channels of a group stay at each width.

An order is nested: width w keeps the first w channels of one fixed permutation. Channels that no layer reads,
such as those of a map that is only summed over its channels, are ordered by the filters that produce them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amc.budget.allocation import even_curve
from amc.cutting.modules import axis_length
from amc.data import LabelledImages
from amc.graph.groups import ChannelGroup, Graph, Slot
from amc.graph.unfolding import weight_matrix
from amc.importance.elimination import Elimination, eliminate, make_reader
from amc.importance.names import check_order
from amc.importance.sensitivity import logit_sensitivity
from amc.importance.taylor import taylor_terms
from amc.refit.moments import Moments, refit_layers
from amc.refit.nested import expand_columns, has_intercept, shrinkage

Scorer = Callable[[ChannelGroup, Mapping[str, nn.Module]], Tensor]
"""A group and the modules of the network by name -> scores (group.width,); higher ones stay longer."""


def _reader_slots(group: ChannelGroup) -> list[Slot]:
    """Return the input slots of the group's consumer layers."""
    return [slot for slot in group.slots if slot.axis == "in" and slot.module in group.readers]


def _producer_slots(group: ChannelGroup) -> list[Slot]:
    """Return the output slots of the layers whose filters produce the group's channels."""
    return [slot for slot in group.slots if slot.axis == "out" and slot.module in group.producers]


def _by_channel(module: nn.Module, slot: Slot) -> Tensor:
    """Return the weights that read, or produce, each channel: (channels, weights) float64."""
    weight = weight_matrix(module).detach().double()
    index = torch.tensor(slot.positions)
    if slot.axis == "out":
        return weight[index].flatten(1)
    columns = weight.reshape(len(weight), axis_length(module, "in"), -1).transpose(0, 1).flatten(1)
    return columns[index].flatten(1)


def _sum_of_shares(scores: Sequence[Tensor], width: int) -> Tensor:
    """Add the scores (width,) of layers, each divided by its sum.

    All layers have the same weight, so that a large one does not dominate a residual stage.
    """
    total = torch.zeros(width, dtype=torch.float64)
    for score in scores:
        total += score / score.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return total


def _norm(order: int) -> Scorer:
    def score(group: ChannelGroup, modules: Mapping[str, nn.Module]) -> Tensor:
        slots = _reader_slots(group) or _producer_slots(group)
        weights = [_by_channel(modules[slot.module], slot) for slot in slots]
        return _sum_of_shares([weight.norm(p=order, dim=1) for weight in weights], group.width)

    return score


def _taylor(terms: Mapping[str, Tensor]) -> Scorer:
    """Score by the first-order ``terms`` of ``taylor_terms``, squared and averaged over the batches."""

    def score(group: ChannelGroup, modules: Mapping[str, nn.Module]) -> Tensor:
        slots = _reader_slots(group)
        if not slots:
            return _norm(2)(group, modules)
        changes = [terms[slot.module][:, torch.tensor(slot.positions)].sum(2) for slot in slots]
        return _sum_of_shares([change.square().mean(0) for change in changes], group.width)

    return score


def _random(group: ChannelGroup, modules: Mapping[str, nn.Module]) -> Tensor:
    # The seed depends on the group alone, so that the order is the same in every process.
    generator = torch.Generator().manual_seed(sum(group.name.encode()) * 1009 + group.width)
    return torch.rand(group.width, dtype=torch.float64, generator=generator)


SCORERS: dict[str, Scorer] = {"l1": _norm(1), "l2": _norm(2), "random": _random}
"""``l1``: L1 norm of the consumer layers' weights, as in AMC's code; ``l2``: L2 norm; ``random``: seeded."""


@dataclass(frozen=True)
class ChannelOrders:
    """Nested channel orders of all groups.

    Attributes:
        orders: group name -> (width,) int64 permutation of its channels, the most important first.
        errors: group name -> output error at every width (``amc.importance.elimination.Elimination``), the
            even curve for channels that no layer reads. Empty for orders without an estimate.
    """

    orders: Mapping[str, Tensor]
    errors: Mapping[str, tuple[float, ...]]


def channel_orders(
    graph: Graph,
    model: nn.Module,
    name: str,
    moments: Mapping[str, Moments],
    calibration: LabelledImages,
    *,
    device: str | torch.device = "cpu",
    ridge: float = 1e-4,
) -> ChannelOrders:
    """Order the channels of every group.

    Args:
        model: the dense network, in eval mode on the CPU; it is not changed.
        name: one of ``ORDERS``.
        moments: second moments of the consumer layers' inputs, by layer; only ``obs`` needs them.
        calibration: images (N, C, H, W) for ``obs`` and ``taylor``, labels (N,) for ``taylor``.
        device: where gradients are computed.
        ridge: as for ``amc.refit.nested.refit``.

    Raises:
        SettingError: unknown order.
        AmcError: the network gives NaN or cannot be differentiated (``obs``, ``taylor``).
    """
    check_order(name)
    modules = dict(model.named_modules())
    if name == "obs":
        readers = refit_layers(graph)
        sensitivity = logit_sensitivity(model, readers, calibration.images, device=device) if readers else {}
        found = {
            group.name: _eliminate(graph, group, modules, moments, sensitivity, ridge)
            for group in graph.groups
        }
        return ChannelOrders(
            {group: elimination.order for group, elimination in found.items()},
            {group: elimination.errors for group, elimination in found.items()},
        )
    if name == "taylor":
        scorer = _taylor(taylor_terms(model, refit_layers(graph), calibration, device=device))
    else:
        scorer = SCORERS[name]
    orders = {
        group.name: torch.argsort(scorer(group, modules), descending=True, stable=True)
        for group in graph.groups
    }
    return ChannelOrders(orders, {})


def _eliminate(
    graph: Graph,
    group: ChannelGroup,
    modules: Mapping[str, nn.Module],
    moments: Mapping[str, Moments],
    sensitivity: Mapping[str, Tensor],
    ridge: float,
) -> Elimination:
    slots = _reader_slots(group)
    if not slots:
        order = torch.argsort(_norm(2)(group, modules), descending=True, stable=True)
        return Elimination(order, (math.inf, *even_curve(group.width)[1:]))
    readers = []
    for slot in slots:
        weight = weight_matrix(modules[slot.module])
        taps = weight.shape[1] // axis_length(modules[slot.module], "in")
        columns = expand_columns(torch.tensor(slot.positions), taps)
        readers.append(
            make_reader(
                moments[slot.module].gram,
                weight,
                columns,
                sensitivity[slot.module],
                ridge=shrinkage(ridge, weight.shape[1], moments[slot.module].rows),
                intercept=has_intercept(graph, modules, slot.module),
            )
        )
    return eliminate(readers, group.width)
