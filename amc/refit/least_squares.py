"""A layer's weights by least squares on rows: its inputs at sampled positions and the outputs wanted there.

How strongly a solution is pulled towards the present weights decides what it is worth on other images: rows
of one image tell much the same, so that a layer of 960 inputs follows a few hundred images in everything,
and the layers behind it do so again. Of several ridges the one is taken that is best on rows of images which
no layer is solved on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_ROWS = 1024
"""Rows whose products are summed in float32."""

RIDGE_STEPS = 7
"""Ridges that are compared on held-out rows, each ten times the one before."""

Passed = Callable[[Tensor], Tensor]
"""(rows, out_channels) outputs -> what the network gets of them."""


@dataclass(frozen=True)
class Problem:
    """What a layer is solved for; ``groups`` of outputs read their own group of inputs only.

    Attributes:
        patches: (rows, in_channels * taps) inputs.
        targets: (rows, out_channels) wanted outputs.
        weight: present weights of the layer, in its own shape: the solution where data is scarce.
        groups: of the convolution.
        intercept: whether a constant may be added to the outputs.
    """

    patches: Tensor
    targets: Tensor
    weight: Tensor
    groups: int
    intercept: bool


@dataclass(frozen=True)
class HeldOut:
    """Rows that only judge.

    Attributes:
        patches, targets: as in ``Problem``.
        passed: what errors are measured after: the norm and the activation behind the layer.
    """

    patches: Tensor
    targets: Tensor
    passed: Passed


def products(left: Tensor, right: Tensor) -> Tensor:
    """Return left^T right (..., columns, outputs), in float64, of (..., rows, columns or outputs).

    Float32 rows are multiplied in float32, ``CHUNK_ROWS`` at a time, and only summed in float64. That is
    nearly three times as fast and off by 1e-7 of the largest entry (576 columns, 8,192 rows), a thousandth of
    the smallest ridge.
    """
    shape = (*left.shape[:-2], left.shape[-1], right.shape[-1])
    total = torch.zeros(shape, dtype=torch.float64, device=left.device)
    chunks = zip(left.split(CHUNK_ROWS, -2), right.split(CHUNK_ROWS, -2), strict=True)
    for part, other in chunks:
        total += part.mT @ other
    return total


def solve_rows(
    problem: Problem,
    *,
    ridge: float,
    held_out: HeldOut | None = None,
    revise: Callable[[Tensor], Tensor] | None = None,
    rounds: int = 0,
) -> tuple[Tensor, Tensor]:
    """Solve ``patches @ W^T + shift = targets`` by least squares.

    Args:
        ridge: pull towards the present weights, relative to the mean input energy of a column; with
            ``held_out`` rows the smallest of ``RIDGE_STEPS`` that are compared.
        held_out: rows that decide between ridges.
        revise: what targets to solve for next, given the outputs (rows, out_channels) of a solution.
        rounds: how many times to revise; the matrix is factorised once.

    Returns:
        Weights in the shape of ``problem.weight``, and the shift (out_channels,), both float32.
    """
    system = _Normal(problem)
    right = system.right(problem.targets)
    if held_out is None:
        solver = system.solver(ridge)
        solution = solver(right)
    else:
        solver, solution = _best(system, right, ridge, held_out)
    if revise is not None:
        for _ in range(rounds):
            solution = solver(system.right(revise(solution.outputs(system.x))))
    return solution.weight.mT.reshape(problem.weight.shape), solution.shift.flatten()


@dataclass(frozen=True)
class _Solution:
    """(groups, columns, outputs) weights and (groups, 1, outputs) shift, float32."""

    weight: Tensor
    shift: Tensor

    def outputs(self, x: Tensor) -> Tensor:
        """Return (rows, out_channels) for ``_grouped`` rows."""
        return (x @ self.weight + self.shift).transpose(0, 1).flatten(1)


_Solver = Callable[[Tensor], _Solution]
"""Right-hand side -> solution."""


def _best(system: _Normal, right: Tensor, ridge: float, held_out: HeldOut) -> tuple[_Solver, _Solution]:
    """Return the solution, and its solver, whose error on the held-out rows is least."""
    wanted = held_out.passed(held_out.targets)
    x = _grouped(held_out.patches, len(system.x))
    found: tuple[float, _Solver, _Solution] | None = None
    for step in range(RIDGE_STEPS):
        solver = system.solver(ridge * 10**step)
        solution = solver(right)
        passed = held_out.passed(solution.outputs(x))
        error = float((passed - wanted).square().sum(dtype=torch.float64))
        if found is None or error < found[0]:
            found = error, solver, solution
    assert found is not None
    return found[1], found[2]


class _Normal:
    """Normal equations of a problem, the column of ones first if there is one."""

    def __init__(self, problem: Problem) -> None:
        self.x = _grouped(problem.patches, problem.groups)
        self._groups, self._rows = problem.groups, len(problem.patches)
        self._ones = int(problem.intercept)
        weight = problem.weight
        self._weight = weight.double().reshape(self._groups, len(weight) // self._groups, -1).mT
        gram = products(self.x, self.x) / self._rows
        if self._ones:
            mean = self._mean(self.x)
            corner = gram.new_ones(self._groups, 1, 1)
            gram = torch.cat([torch.cat([corner, mean], -1), torch.cat([mean.mT, gram], -1)], -2)
        self._gram = gram

    def right(self, targets: Tensor) -> Tensor:
        """Return the right-hand side for targets (rows, out_channels)."""
        y = _grouped(targets, self._groups)
        right = products(self.x, y) / self._rows
        return torch.cat([self._mean(y), right], -2) if self._ones else right

    def solver(self, ridge: float) -> _Solver:
        """Factorise the matrix with a ridge; the solver serves any right-hand side."""
        gram, ones = self._gram.clone(), self._ones
        diagonal = gram.diagonal(dim1=-2, dim2=-1)[..., ones:]
        penalty = ridge * diagonal.mean(dim=-1).clamp(min=1e-30)[..., None]
        diagonal += penalty
        factor, failed = torch.linalg.cholesky_ex(gram)
        singular = bool(failed.any())
        pull = penalty[..., None] * self._weight

        def solve(right: Tensor) -> _Solution:
            pulled = torch.cat([right[..., :ones, :], right[..., ones:, :] + pull], -2)
            found = torch.linalg.solve(gram, pulled) if singular else torch.cholesky_solve(pulled, factor)
            weight = found[:, ones:].float()
            shift = found[:, :ones].float() if ones else torch.zeros_like(weight[:, :1])
            return _Solution(weight, shift)

        return solve

    def _mean(self, values: Tensor) -> Tensor:
        return values.sum(-2, dtype=torch.float64)[:, None] / self._rows


def _grouped(rows: Tensor, groups: int) -> Tensor:
    """(rows, groups * n) -> (groups, rows, n), copied: every product would do it again."""
    return rows.reshape(len(rows), groups, -1).transpose(0, 1).contiguous()
