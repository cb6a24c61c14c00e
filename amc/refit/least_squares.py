"""A layer's weights by least squares: its inputs at sampled positions and the outputs wanted there.

How strongly a solution is pulled towards the present weights decides what it is worth on other images: rows
of one image tell much the same, so that a layer of 960 inputs follows a few hundred images in everything,
and the layers behind it do so again. Of several ridges the one is taken that is best on rows of images which
no layer is solved on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_ROWS = 4096
"""Rows whose products are summed in float32."""

SUMMED_ROWS = 512
"""Rows that are summed in float32 themselves: of what comes out a layer's shift is the difference."""

PANELS, WIDEST = 3, 144
"""A second moment is computed in panels of rows, each up to the diagonal: in so many, or in panels of so many
rows if these are more."""

RIDGE_STEPS = 7
"""Ridges that are compared on held-out rows, each ten times the one before."""

LEAST_RIDGE = 1e-6
"""The smallest of them: ten times 0 is 0, and from it they reach a ridge that guards a layer of few rows."""

Passed = Callable[[Tensor], Tensor]
"""(rows, out_channels) outputs -> what the network gets of them."""


@dataclass(frozen=True)
class Problem:
    """What a layer is solved for; ``groups`` of outputs read their own group of inputs only.

    Attributes:
        inputs: (groups, columns, rows of a block), block by block (``amc.graph.columns``); gone through once,
            and again for every revision of the targets.
        targets: (rows, out_channels) wanted outputs.
        weight: (groups, columns, outputs of a group) present weights: the solution where data is scarce.
        intercept: whether a constant may be added to the outputs.
    """

    inputs: Iterable[Tensor]
    targets: Tensor
    weight: Tensor
    intercept: bool


@dataclass(frozen=True)
class HeldOut:
    """Rows that only judge.

    Attributes:
        inputs, targets: as in ``Problem``.
        passed: what errors are measured after: the norm and the activation behind the layer.
    """

    inputs: Sequence[Tensor]
    targets: Tensor
    passed: Passed


def solve_rows(
    problem: Problem,
    *,
    ridge: float,
    held_out: HeldOut | None = None,
    revise: Callable[[Tensor], Tensor] | None = None,
    rounds: int = 0,
) -> tuple[Tensor, Tensor]:
    """Solve ``inputs^T W + shift = targets`` by least squares.

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
    if held_out is None:
        solver = system.solver(ridge)
        solution = solver(system.right)
    else:
        solver, solution = _best(system, ridge, held_out)
    if revise is not None:
        for _ in range(rounds):
            solution = solver(system.right_for(revise(solution.outputs(problem.inputs))))
    return solution.weight, solution.shift.flatten()


@dataclass(frozen=True)
class _Solution:
    """(groups, columns, outputs) weights and (groups, 1, outputs) shift, float32."""

    weight: Tensor
    shift: Tensor

    def outputs(self, inputs: Iterable[Tensor]) -> Tensor:
        """Return (rows, out_channels) for blocks of inputs (groups, columns, rows)."""
        found = [x.mT @ self.weight + self.shift for x in inputs]
        return torch.cat([block.transpose(0, 1).flatten(1) for block in found])


_Solver = Callable[[Tensor], _Solution]
"""Right-hand side -> solution."""


def _best(system: _Normal, ridge: float, held_out: HeldOut) -> tuple[_Solver, _Solution]:
    """Return the solution, and its solver, whose error on the held-out rows is least."""
    wanted = held_out.passed(held_out.targets)
    found: tuple[float, _Solver, _Solution] | None = None
    for step in range(RIDGE_STEPS):
        solver = system.solver(ridge * 10**step)
        solution = solver(system.right)
        passed = held_out.passed(solution.outputs(held_out.inputs))
        error = float((passed - wanted).square().sum(dtype=torch.float64))
        if found is None or error < found[0]:
            found = error, solver, solution
    assert found is not None
    return found[1], found[2]


class _Normal:
    """Normal equations of a problem, the row of the ones first if there is one.

    Attributes:
        right: the right-hand side (groups, columns, outputs of a group), in float64.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._ones = int(problem.intercept)
        self._rows = len(problem.targets)
        groups, size, _ = problem.weight.shape
        gram = _Sum(groups, self._ones + size, self._ones + size, like=problem.targets)
        right = self._right_sum(problem.targets)
        means = problem.targets.new_zeros(groups, size, dtype=torch.float64)
        for x, y in self._blocks(problem.targets):
            gram.add_lower(x, self._ones)
            right.add(x, y)
            if self._ones:
                means += x.sum(-1)
        self._lower = gram.total()
        if self._ones:
            self._lower[:, 0, 0] = self._rows
            self._lower[:, 1:, 0] = means
        self.right = self._with_sum(right.total(), problem.targets)

    def right_for(self, targets: Tensor) -> Tensor:
        """Return the right-hand side for other targets (rows, out_channels)."""
        right = self._right_sum(targets)
        for x, y in self._blocks(targets):
            right.add(x, y)
        return self._with_sum(right.total(), targets)

    def _right_sum(self, targets: Tensor) -> _Sum:
        return _Sum(*self._problem.weight.shape, like=targets)

    def solver(self, ridge: float) -> _Solver:
        """Factorise the matrix with a ridge; the solver serves any right-hand side."""
        matrix, ones = self._lower.clone(), self._ones
        diagonal = matrix.diagonal(dim1=-2, dim2=-1)[..., ones:]
        penalty = ridge * diagonal.mean(dim=-1).clamp(min=1e-30)[..., None]
        diagonal += penalty
        factor, failed = torch.linalg.cholesky_ex(matrix)  # which reads the lower triangle alone
        singular = bool(failed.any())
        pull = penalty[..., None] * self._problem.weight.double()

        def solve(right: Tensor) -> _Solution:
            pulled = torch.cat([right[..., :ones, :], right[..., ones:, :] + pull], -2)
            found = _solve_lower(matrix, pulled) if singular else torch.cholesky_solve(pulled, factor)
            weight = found[:, ones:].float()
            shift = found[:, :ones].float() if ones else torch.zeros_like(weight[:, :1])
            return _Solution(weight, shift)

        return solve

    def _blocks(self, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield blocks of inputs, and their targets (groups, outputs of a group, rows)."""
        groups, _, outputs = self._problem.weight.shape
        parted = targets.reshape(len(targets), groups, outputs).permute(1, 2, 0)
        start = 0
        for block in self._problem.inputs:
            for x in block.split(CHUNK_ROWS, -1):
                end = start + x.shape[-1]
                yield x, parted[..., start:end]
                start = end

    def _with_sum(self, side: Tensor, targets: Tensor) -> Tensor:
        if not self._ones:
            return side
        sums = torch.stack([part.sum(0) for part in targets.split(SUMMED_ROWS)])
        return torch.cat([sums.sum(0, dtype=torch.float64).view(len(side), 1, -1), side], -2)


class _Sum:
    """A sum of products of blocks of rows: in their own precision over ``CHUNK_ROWS``, beyond in float64.

    Products in float32 are several times as fast, and off by 2e-7 of the largest entry (576 columns, 8,192
    rows), a thousandth of the smallest ridge.

    Args:
        shape: (groups, columns, columns or outputs).
        like: rows, for the precision and the device.
    """

    def __init__(self, *shape: int, like: Tensor) -> None:
        self._part = like.new_zeros(shape)
        self._total: Tensor | None = None
        self._rows = 0

    def add(self, left: Tensor, right: Tensor) -> None:
        """Add ``left @ right^T`` of (groups, columns, rows) and (groups, outputs, rows)."""
        self._make_room(left.shape[-1])
        self._part.baddbmm_(left, right.mT)

    def add_lower(self, rows: Tensor, first: int) -> None:
        """Add the lower triangle of ``rows @ rows^T``, from row and column ``first`` on.

        Some of what lies above the diagonal is left out.
        """
        self._make_room(rows.shape[-1])
        size = rows.shape[1]
        height = min(WIDEST, -(-size // PANELS))
        for start in range(0, size, height):
            end = min(start + height, size)
            part = self._part[:, first + start : first + end, first : first + end]
            part.baddbmm_(rows[:, start:end], rows[:, :end].mT)

    def total(self) -> Tensor:
        """Return the sum, in float64."""
        return self._part.double() if self._total is None else self._total.add_(self._part)

    def _make_room(self, rows: int) -> None:
        if self._rows and self._rows + rows > CHUNK_ROWS:
            self._total = self.total()
            self._part.zero_()
            self._rows = 0
        self._rows += rows


def _solve_lower(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve a symmetric system of which the lower triangle is given."""
    return torch.linalg.solve(matrix.tril() + matrix.tril(-1).mT, right)
