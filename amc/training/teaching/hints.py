"""Hints: a teacher's feature maps as targets of the network's, through a linear map.

At each place the network's channels predict the teacher's, by a 1x1 convolution that starts as the
least-squares solution (Romero et al., "FitNets", 2015, start at random). The map goes in this direction, as
the teacher's features are fixed: a trained map of the other direction could make both sides zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from amc.graph.groups import Graph
from amc.scoring.run import evaluating

RIDGE = 1e-6
"""Ridge of the least squares, relative to the mean of the diagonal of the second moments."""
BATCH = 64
"""Images per batch of the least squares."""


def hint_places(graph: Graph) -> tuple[str, ...]:
    """Return the modules whose inputs are compared: the last consumer of each coupled channel group.

    Coupled groups are the residual streams. A network without any has its last group compared. Consumers of
    flattened feature maps are left out.
    """
    order = {layer.name: number for number, layer in enumerate(graph.layers)}
    plain = {
        slot.module
        for group in graph.groups
        for slot in group.slots
        if slot.axis == "in" and all(len(owned) == 1 for owned in slot.positions)
    }
    last = {
        group.name: max(readers, key=order.__getitem__)
        for group in graph.groups
        if (readers := [name for name in group.readers if name in plain and name in order])
    }
    coupled = [last[group.name] for group in graph.groups if len(group.producers) > 1 and group.name in last]
    found = coupled or list(last.values())[-1:]
    return tuple(sorted(set(found), key=order.__getitem__))


class Hints(nn.Module):
    """The linear maps, and the features of the last forward of both networks.

    Args:
        student: the network that learns; its features are recorded until ``close``.
        teacher: the network that teaches, likewise.
        places: names of modules in both networks whose inputs are compared. Channels are the second axis
            of the input of what is a convolution in the teacher, and the last one of other modules'.
        images: (N, C, H, W) for the least squares.
        fixed: whether the maps stay as they start.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, places: Sequence[str], images: Tensor, *, fixed: bool
    ) -> None:
        super().__init__()
        self._own: dict[str, Tensor] = {}
        self._theirs: dict[str, Tensor] = {}
        self._hooks = [*_record(student, places, self._own), *_record(teacher, places, self._theirs)]
        self.places = tuple(places)
        modules = dict(teacher.named_modules())  # the student's convolutions may have adapters around them
        self._convolved = {place: isinstance(modules[place], _ConvNd) for place in places}
        fits = self._least_squares(student, teacher, images)
        self.maps = nn.ParameterList([nn.Parameter(fits[place][0], not fixed) for place in places])
        self.scales = [fits[place][1] for place in places]

    def loss(self) -> Tensor:
        """Return the mean over the places of the squared error, relative to the variance of the features."""
        errors = []
        for place, weights, scale in zip(self.places, self.maps, self.scales, strict=True):
            own, theirs = self._own[place].float(), self._theirs[place].float()
            kernel, bias = weights[:, :-1], weights[:, -1]
            if self._convolved[place] and own.ndim == 4:  # without moving the axis, which would copy
                found = F.conv2d(own, kernel[:, :, None, None], bias)
            elif self._convolved[place]:
                found = F.linear(own.movedim(1, -1), kernel, bias).movedim(-1, 1)
            else:
                found = F.linear(own, kernel, bias)
            errors.append(F.mse_loss(found, theirs) / scale)
        return torch.stack(errors).mean()

    @torch.no_grad()
    def _least_squares(
        self, student: nn.Module, teacher: nn.Module, images: Tensor
    ) -> dict[str, tuple[Tensor, float]]:
        """Return the weights (teacher's channels, own channels + 1) and the features' variance, by place."""
        squares: dict[str, Tensor] = {}
        products: dict[str, Tensor] = {}
        totals: dict[str, Tensor] = {}
        with evaluating(student), evaluating(teacher):
            for part in images.split(BATCH):
                student(part.clone())
                teacher(part.clone())
                for place, convolved in self._convolved.items():
                    rows, targets = _rows(self._own[place], convolved), _rows(self._theirs[place], convolved)
                    rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
                    _add(squares, place, rows.T @ rows)
                    _add(products, place, rows.T @ targets)
                    _add(totals, place, torch.stack([targets.sum(0), targets.square().sum(0)]))
        return {place: _solved(squares[place], products[place], totals[place]) for place in squares}

    def close(self) -> None:
        """Record no more features."""
        for hook in self._hooks:
            hook.remove()
        self._own.clear()
        self._theirs.clear()


def _record(network: nn.Module, places: Sequence[str], found: dict[str, Tensor]) -> Iterator[Any]:
    """Register hooks that put the first input of each place into ``found``."""
    modules = dict(network.named_modules())
    for place in places:

        def note(module: nn.Module, given: tuple[Tensor, ...], place: str = place) -> None:
            found[place] = given[0]

        yield modules[place].register_forward_pre_hook(note)


def _solved(square: Tensor, product: Tensor, total: Tensor) -> tuple[Tensor, float]:
    """Return the least-squares weights of one place, and the variance of its targets."""
    count = square[-1, -1]
    identity = torch.eye(len(square), dtype=square.dtype, device=square.device)
    ridge = RIDGE * square.diagonal().mean() * identity
    weights = torch.linalg.solve(square + ridge, product).T.float().contiguous()
    mean, mean_square = total / count
    return weights, max(float((mean_square - mean**2).mean()), torch.finfo(torch.float32).tiny)


def _rows(features: Tensor, convolved: bool) -> Tensor:
    """Return features as rows in float64, (all positions of all images, channels)."""
    last = features.movedim(1, -1) if convolved else features
    return last.flatten(0, -2).double()


def _add(sums: dict[str, Tensor], place: str, term: Tensor) -> None:
    sums[place] = sums[place] + term if place in sums else term
