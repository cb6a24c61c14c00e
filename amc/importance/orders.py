"""Channel orders: which channels of a group stay at each width.

A scorer is a callable ``(group, weights) -> scores`` of length ``group.width``; higher stays longer. The
order is nested: the channels kept at a width are the first so many of one fixed permutation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amc.data import LabelledImages
from amc.errors import AmcError
from amc.graph.groups import ChannelGroup, Graph, Slot
from amc.importance.elimination import Elimination, eliminate, make_reader
from amc.importance.sensitivity import logit_sensitivity
from amc.importance.taylor import taylor_terms
from amc.refit.moments import Moments, refit_layers
from amc.refit.nested import expand_columns, shrinkage

Scorer = Callable[[ChannelGroup, Mapping[str, nn.Module]], Tensor]


def _reader_slots(group: ChannelGroup) -> list[Slot]:
    """Return where each layer that reads the group does so."""
    return [slot for slot in group.slots if slot.axis == "in" and slot.module in group.readers]


def _by_channel(module: nn.Module, slot: Slot) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    index = torch.tensor(slot.positions)
    columns = weight.detach().double().transpose(0, 1).flatten(1)
    return columns[index].flatten(1)


def _alike(scores: Sequence[Tensor], width: int) -> Tensor:
    """Add the readers' scores (channels,), each as shares of its sum.

    Each reader counts alike: a large layer must not drown the others of a residual stage.
    """
    total = torch.zeros(width, dtype=torch.float64)
    for score in scores:
        total += score / score.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return total


def _norm(order: int) -> Scorer:
    def score(group: ChannelGroup, modules: Mapping[str, nn.Module]) -> Tensor:
        weights = [_by_channel(modules[slot.module], slot) for slot in _reader_slots(group)]
        return _alike([weight.norm(p=order, dim=1) for weight in weights], group.width)

    return score


def _taylor(terms: Mapping[str, Tensor]) -> Scorer:
    """Score by first-order terms, see ``taylor_terms``: squared for every batch, then averaged."""

    def score(group: ChannelGroup, modules: Mapping[str, nn.Module]) -> Tensor:
        changes = [
            terms[slot.module][:, torch.tensor(slot.positions)].sum(2) for slot in _reader_slots(group)
        ]
        return _alike([change.square().mean(0) for change in changes], group.width)

    return score


def _random(group: ChannelGroup, modules: Mapping[str, nn.Module]) -> Tensor:
    # A seed from the group's place, so that the order is the same in every process.
    generator = torch.Generator().manual_seed(sum(group.name.encode()) * 1009 + group.width)
    return torch.rand(group.width, dtype=torch.float64, generator=generator)


SCORERS: dict[str, Scorer] = {"l1": _norm(1), "l2": _norm(2), "random": _random}
"""``l1``: L1 norm of the readers' weights, as in AMC's code; ``l2``: Euclidean; ``random``: seeded."""


ORDERS = ("obs", "taylor", *SCORERS)
"""All orders; ``obs`` eliminates backwards by what the readers' least-squares errors do to the logits
(``amc.importance.elimination``);
``taylor`` squares the sum of weight x gradient of the loss (Molchanov et al., Importance Estimation for
Neural Network Pruning, CVPR 2019) over the readers' weights, as ``l1`` does with their sizes."""


def check_order(name: str) -> None:
    """Refuse an unknown order.

    Raises:
        AmcError: says which there are.
    """
    if name not in ORDERS:
        raise AmcError(f"compressor.order is {name!r}; expected one of {', '.join(ORDERS)}")


@dataclass(frozen=True)
class ChannelOrders:
    """Nested channel orders of all groups.

    Attributes:
        orders: group name -> permutation of its channels, most important first.
        errors: group name -> error at every width (``amc.importance.elimination.Elimination``); empty for
            orders that do not estimate one.
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
        model: the dense network, in eval mode on the CPU; it is read and never changed.
        moments: second moments of the readers' inputs; only ``obs`` needs them.
        calibration: training images; ``obs`` and ``taylor`` look at them, ``taylor`` at the labels too.
        device: where gradients are computed.
        ridge: as for ``amc.refit.nested.refit``.

    Raises:
        AmcError: unknown order; see also ``amc.importance.gradients``.
    """
    check_order(name)
    modules = dict(model.named_modules())
    if name == "obs":
        readers = refit_layers(graph)
        sensitivity = logit_sensitivity(model, readers, calibration.images, device=device) if readers else {}
        found = {
            group.name: _eliminate(group, modules, moments, sensitivity, ridge) for group in graph.groups
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
    group: ChannelGroup,
    modules: Mapping[str, nn.Module],
    moments: Mapping[str, Moments],
    sensitivity: Mapping[str, Tensor],
    ridge: float,
) -> Elimination:
    readers = []
    for slot in _reader_slots(group):
        weight = modules[slot.module].weight
        assert isinstance(weight, Tensor)
        columns = expand_columns(torch.tensor(slot.positions), weight[0, 0].numel())
        readers.append(
            make_reader(
                moments[slot.module].gram,
                weight.flatten(1),
                columns,
                sensitivity[slot.module],
                ridge=shrinkage(ridge, weight[0].numel(), moments[slot.module].rows),
            )
        )
    return eliminate(readers, group.width)
