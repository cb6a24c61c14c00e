"""Nested channel order by backward elimination: each step removes the channel with the least error.

For a consumer layer ``Y = X W`` with input covariance C (or second moments, where the layer takes up no
constant) and ``H = C^-1``, removing the columns B of X and refitting the others adds the error ``tr(W_B^T
(H_BB)^-1 W_B)`` to the outputs. It leaves the weights ``W - H_:B (H_BB)^-1 W_B`` and the inverse ``H - H_:B
(H_BB)^-1 H_B:`` (the optimal-brain-surgeon step of Hassibi and Stork, 1993, for blocks of columns). Unlike a
norm, this error takes into account that the remaining channels can replace a removed one. The error of each
output is weighted by its effect on the logits (``amc.importance.sensitivity.logit_sensitivity``), so that
outputs, layers and groups are comparable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amc.refit.nested import factorise

COMPACT_AT = 0.75
"""Share of live columns at which dead ones are dropped, so that updates stop touching them."""


@dataclass
class Reader:
    """The state of a consumer layer during the elimination.

    Attributes:
        inverse: (D, D) float64 inverse of the ridged covariance, or second moments, of the remaining inputs.
        weight: (D, out) float64 weights refitted to the remaining inputs, times the square root of the
            outputs' sensitivity.
        columns: (channels, B) int64 columns of each channel; rows of removed channels are meaningless.
        dead: (D,) bool, true for columns of removed channels that are not dropped yet.
    """

    inverse: Tensor
    weight: Tensor
    columns: Tensor
    dead: Tensor


def make_reader(
    gram: Tensor, weight: Tensor, columns: Tensor, sensitivity: Tensor, *, ridge: float, intercept: bool
) -> Reader:
    """Return a consumer layer as it is before the elimination.

    Args:
        gram: (D + 1, D + 1) second moments of the inputs and a constant 1, which comes last
            (``amc.refit.moments.Moments.gram``).
        weight: (out, D) dense weights.
        columns: (channels, B) columns of each channel of the group; all other columns always stay.
        sensitivity: (out,) cost of an error of variance 1 in each output.
        ridge: added to the diagonal of the covariance, relative to the mean of the second moments; it grows
            where inputs that depend on each other need more.
        intercept: whether the layer takes up a constant (``amc.refit.nested.has_intercept``). Else the mean
            of a removed channel is lost, so that its second moment counts in place of its variance.

    Raises:
        AmcError: the moments are not finite.
    """
    size = weight.shape[1]
    covariance = gram[:size, :size]
    if intercept:
        mean = gram[:size, size]
        covariance = covariance - mean[:, None] * mean[None, :]
    # Outputs without influence get a small weight, so that the order of their inputs is defined.
    root = sensitivity.double().clamp(min=1e-3 * float(sensitivity.mean()) + 1e-30).sqrt()
    dense = (weight.detach().double().cpu().T * root).contiguous()
    scale = float(gram.diagonal()[:size].mean())
    inverse = torch.cholesky_inverse(factorise(covariance, max(ridge * scale, 1e-12)))
    return Reader(inverse, dense, columns, torch.zeros(size, dtype=torch.bool))


@dataclass(frozen=True)
class Elimination:
    """A nested channel order and the output error at each width.

    Attributes:
        order: (channels,) int64 permutation, the last eliminated channel first.
        errors: ``errors[w]`` is the weighted output error of the consumer layers with ``w`` channels and
            refitted weights, in the unit of the sensitivities. ``errors[channels]`` is 0 and ``errors[0]``
            is infinite.
    """

    order: Tensor
    errors: tuple[float, ...]


def eliminate(readers: Sequence[Reader], channels: int) -> Elimination:
    """Eliminate one channel after the other.

    Args:
        readers: the consumer layers, at least one; they are changed and cannot be used again.
        channels: number of channels of the group.
    """
    alive = torch.arange(channels)
    removed: list[int] = []
    errors = [0.0]
    while len(alive) > 1:
        cost = torch.zeros(len(alive), dtype=torch.float64)
        for reader in readers:
            cost += _removal_errors(reader, alive)
        worst = int(cost.argmin())
        channel = int(alive[worst])
        removed.append(channel)
        errors.append(errors[-1] + float(cost[worst]))
        alive = torch.cat([alive[:worst], alive[worst + 1 :]])
        for reader in readers:
            _remove(reader, channel)
            _compact(reader, alive)
    removed += alive.tolist()
    return Elimination(torch.tensor(removed[::-1]), (math.inf, *errors[::-1]))


def _removal_errors(reader: Reader, alive: Tensor) -> Tensor:
    """Return the output error that removing each channel would add, after a refit: (channels alive,)."""
    columns = reader.columns[alive]
    blocks = reader.inverse[columns[:, :, None], columns[:, None, :]]
    weights = reader.weight[columns]
    if columns.shape[1] == 1:
        return weights.square().sum(dim=(1, 2)) / blocks[:, 0, 0]
    return (weights * torch.linalg.solve(blocks, weights)).sum(dim=(1, 2))


def _remove(reader: Reader, channel: int) -> None:
    block = reader.columns[channel]
    left = reader.inverse[:, block]
    factor = torch.linalg.solve(reader.inverse[block][:, block], left, left=False)
    reader.weight -= factor @ reader.weight[block]
    reader.inverse.addmm_(factor, left.T, alpha=-1.0)
    reader.dead[block] = True


def _compact(reader: Reader, alive: Tensor) -> None:
    """Drop the columns of removed channels once they are a quarter of all."""
    stays = (~reader.dead).nonzero().flatten()
    if len(stays) > COMPACT_AT * len(reader.dead):
        return
    place = torch.full((len(reader.dead),), -1)
    place[stays] = torch.arange(len(stays))
    reader.inverse = reader.inverse[stays][:, stays].contiguous()
    reader.weight = reader.weight[stays].contiguous()
    reader.dead = reader.dead[stays]
    moved = torch.full_like(reader.columns, -1)
    moved[alive] = place[reader.columns[alive]]
    reader.columns = moved
