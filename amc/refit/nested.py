"""Least-squares refit of a layer that lost input channels, from second moments instead of features.

With ``Y = X W^T`` the best weights on the kept columns S of X need only ``G = X^T X`` (He et al., Channel
Pruning, ICCV 2017, eq. 4, in normal form): ``W' = (G_SS + r I)^-1 (G_S: W^T + r W_S^T)``. The ridge pulls
towards the original weights, so that keeping everything changes nothing. X is the layer's input unfolded
to patches, with a column of ones so that the bias is refitted too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amc.errors import AmcError
from amc.graph.groups import Graph
from amc.graph.layers import MapNorm
from amc.refit.moments import Moments


@dataclass(frozen=True)
class Refit:
    """Weights that replace a layer's on its kept columns.

    Attributes:
        weight: (out_channels, kept columns) float32.
        shift: (out_channels,) float32, to be added to the layer's output.
    """

    weight: Tensor
    shift: Tensor

    @property
    def nbytes(self) -> int:
        """Memory that the refit holds."""
        return self.weight.nbytes + self.shift.nbytes


def shrinkage(ridge: float, columns: int, rows: int) -> float:
    """Return the ridge to use where a layer with ``columns`` inputs was seen at ``rows`` positions.

    A classifier has one position an image: with fewer images than inputs the normal equations can be solved
    exactly, for these images only. The ridge grows with the square of columns per row, which leaves layers
    that were seen often alone: 5e-4 at 8,192 rows of 576 columns, 0.1 at as many rows as columns.
    """
    return max(ridge, 0.1 * (columns / rows) ** 2)


def expand_columns(positions: Tensor, taps: int) -> Tensor:
    """Return the columns of X that belong to input channels.

    Args:
        positions: (n,) input channels, or (n, m): m input positions for each of n channels.
        taps: kh * kw columns for each.

    Returns:
        (n * taps,), or (n, m * taps).
    """
    return (positions[..., None] * taps + torch.arange(taps)).flatten(-2)


def refit(
    moments: Moments, weight: Tensor, columns: Tensor, *, intercept: bool, ridge: float = 1e-4
) -> Refit:
    """Solve for the weights on the kept columns that reproduce the dense layer's output best.

    Args:
        weight: (out_channels, D) dense weights, flattened.
        columns: kept columns, ascending.
        intercept: whether the output may also be shifted (the layer has a bias or a batch norm after it).
        ridge: weight of staying near the dense weights, relative to the mean input energy of a column.
    """
    factor, target = _normal_equations(moments, weight, columns, intercept, ridge)
    return _as_refit(torch.cholesky_solve(target, factor), intercept)


def _normal_equations(
    moments: Moments, weight: Tensor, columns: Tensor, intercept: bool, ridge: float
) -> tuple[Tensor, Tensor]:
    """Cholesky factor and right-hand side for the given columns, the column of ones first if there is one."""
    gram, dense = moments.gram, weight.detach().double().cpu()
    size, ones = dense.shape[1], int(intercept)
    order = torch.cat([torch.full((ones,), size), columns])
    penalty = ridge * float(gram.diagonal()[:size].mean().clamp(min=1e-30))
    target = gram[order][:, :size] @ dense.T
    target[ones:] += penalty * dense[:, columns].T
    return factorise(gram[order][:, order], penalty, skip=ones), target


def _as_refit(solution: Tensor, intercept: bool) -> Refit:
    ones = int(intercept)
    weight = solution[ones:].T.float().contiguous()
    return Refit(weight, solution[0].float() if ones else torch.zeros(len(weight)))


class NestedRefit:
    """Refits of one layer for every width of a nested channel order, from one factorisation.

    With the columns permuted into the order, the leading block of one Cholesky factor, and the leading rows
    of one forward substitution, serve every width: a width costs a back substitution only.

    Args:
        weight: (out_channels, D) dense weights, flattened.
        columns: (channels, B) columns of each channel, most important channel first; all other columns of X
            are always kept.
        intercept, ridge: as for ``refit``.
    """

    def __init__(
        self, moments: Moments, weight: Tensor, columns: Tensor, *, intercept: bool, ridge: float = 1e-4
    ) -> None:
        self._block = columns.shape[1]
        self._intercept = intercept
        owned = torch.zeros(weight.shape[1], dtype=torch.bool)
        owned[columns.flatten()] = True
        fixed = (~owned).nonzero().flatten()
        self._fixed = len(fixed)
        self._columns = torch.cat([fixed, columns.flatten()])
        self._factor, target = _normal_equations(moments, weight, self._columns, intercept, ridge)
        self._forward = torch.linalg.solve_triangular(self._factor, target, upper=False)

    def __call__(self, width: int) -> Refit:
        """Return the refit that keeps the first ``width`` channels of the order."""
        kept = self._fixed + width * self._block
        ones = int(self._intercept)
        rows = ones + kept
        solution = torch.linalg.solve_triangular(
            self._factor[:rows, :rows].T, self._forward[:rows], upper=True
        )
        solution[ones:] = solution[ones:][self._columns[:kept].argsort()]
        return _as_refit(solution, self._intercept)


def factorise(system: Tensor, penalty: float, *, skip: int = 0) -> Tensor:
    """Cholesky factor (n, n) of ``system + penalty I`` (the first ``skip`` diagonal entries left alone).

    Inputs that are dead or depend on each other make moments singular; the penalty grows until the
    factorisation succeeds.

    Args:
        system: (n, n) float64; it is not changed.

    Raises:
        AmcError: it never succeeds.
    """
    for _ in range(12):
        ridged = system.clone()
        ridged.diagonal()[skip:] += penalty
        factor, failed = torch.linalg.cholesky_ex(ridged)
        if not failed:
            return factor
        penalty = max(10 * penalty, 1e-12)
    raise AmcError("the second moments of a layer's input cannot be factorised; is its input finite?")


def has_intercept(graph: Graph, modules: Mapping[str, nn.Module], layer: str) -> bool:
    """Whether a constant can be added to a layer's output: into its bias or the batch norm after it."""
    norm = modules.get(graph.norm_after.get(layer, ""))
    tracked = isinstance(norm, MapNorm) and norm.running_mean is not None
    return getattr(modules[layer], "bias", None) is not None or tracked
