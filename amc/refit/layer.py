"""New weights for one layer of a pruned network, solved and put in place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amc.graph.columns import weight_of_columns, weight_to_columns
from amc.graph.layers import MapNorm
from amc.graph.unfolding import single
from amc.refit.activations import Bounds, passing, revision
from amc.refit.least_squares import LEAST_RIDGE, HeldOut, Problem, solve_rows
from amc.refit.nested import shrinkage


@dataclass(frozen=True)
class NormAfter:
    """The batch norm of the pruned network that alone reads a layer's output.

    Attributes:
        module: its statistics are adapted in place.
        mean: (out_channels,) the dense network's running mean at the kept channels.
    """

    module: MapNorm
    mean: Tensor

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return scale (0 if too flat to correct) and offset: what the norm makes of the layer's output."""
        norm = self.module
        assert norm.running_var is not None
        scale = torch.rsqrt(norm.running_var + norm.eps)
        if norm.affine:
            scale = scale * norm.weight
        offset = -self.mean * scale + (norm.bias if norm.affine else 0)
        flat = scale.abs() < 0.05 * scale.abs().mean()
        return torch.where(flat, torch.zeros_like(scale), scale), offset


def norm_after(
    pruned: nn.Module, dense: nn.Module, name: str | None, outputs: Tensor | None
) -> NormAfter | None:
    """Return the batch norm after a layer, or None if there is none with running statistics.

    Args:
        pruned, dense: the two networks.
        name: of the norm in both.
        outputs: kept channels of the layer, (n,) int64; None for all.
    """
    if name is None:
        return None
    norm, mean = pruned.get_submodule(name), dense.get_submodule(name).running_mean
    if not isinstance(norm, MapNorm) or not isinstance(mean, Tensor):
        return None
    return NormAfter(norm, select(mean, outputs, dim=0))


@dataclass(frozen=True)
class Samples:
    """Inputs of a layer of the pruned network at sampled positions, and the outputs wanted there.

    Attributes:
        inputs: blocks of inputs (groups, taps * channels of a group, rows) as ``amc.graph.columns`` gathers
            them; gone through once if all rows are solved on, and without rounds.
        targets: (rows, out_channels) wanted outputs.
        scale, offset: (out_channels,) and (rows, out_channels); the activation behind the layer gets
            ``output * scale + offset``.
        fit: the first rows, which are solved on; the others choose the ridge.
        bounds: of that activation, if there is one.
    """

    inputs: Iterable[Tensor]
    targets: Tensor
    scale: Tensor
    offset: Tensor
    fit: int
    bounds: Bounds | None = None


def refit_layer(
    module: nn.Conv2d | nn.Linear, samples: Samples, norm: NormAfter | None, *, ridge: float, rounds: int
) -> None:
    """Solve for a layer's weights and put them in place; without a bias, the norm takes up the shift.

    Args:
        ridge: see ``amc.refit.least_squares.solve_rows``; the least one, with held-out rows, but at least
            ``LEAST_RIDGE``.
        rounds: how often to solve again with what the activation cuts off left free.
    """
    fit, held = samples.fit, samples.fit < len(samples.targets)
    rows, scale, offset, bounds = samples.targets, samples.scale, samples.offset, samples.bounds
    free = bounds if rounds else None  # a plain refit has no work added
    inputs: Iterable[Tensor] = samples.inputs
    others: list[Tensor] = []
    if held or free:  # inputs that are needed more than once
        inputs, others = parted(samples.inputs, fit)
    intercept = module.bias is not None or norm is not None
    judged = HeldOut(others, rows[fit:], passing(scale, offset[fit:], bounds))
    weight, shift = solve_rows(
        Problem(inputs, rows[:fit], weight_to_columns(module), intercept),
        ridge=max(ridge, LEAST_RIDGE) if held else shrinkage(ridge, module.weight[0].numel(), fit),
        held_out=judged if held else None,
        revise=revision(rows[:fit], scale, offset[:fit], free) if free else None,
        rounds=rounds,
    )
    module.weight.copy_(weight_of_columns(module, weight))
    if module.bias is not None:
        module.bias.copy_(shift)
    elif norm is not None:
        assert norm.module.running_mean is not None
        norm.module.running_mean.copy_(norm.mean - shift)


def parted(blocks: Iterable[Tensor], fit: int) -> tuple[list[Tensor], list[Tensor]]:
    """Part blocks (..., rows): those of the first ``fit`` rows, and those of the others."""
    first: list[Tensor] = []
    others: list[Tensor] = []
    for block in blocks:
        own = min(fit, block.shape[-1])
        fit -= own
        first += [block[..., :own]] if own else []
        others += [block[..., own:]] if own < block.shape[-1] else []
    return first, others


def reestimate(norm: MapNorm, calls: Sequence[Sequence[Tensor]]) -> None:
    """Take the statistics of a norm's inputs, as training does: of every call, averaged over the calls.

    Args:
        calls: for each call in a forward pass, blocks of inputs (N, C, H, W); other inputs leave the norm as
            it is.
    """
    if norm.running_mean is None or norm.running_var is None or calls[0][0].ndim != 4:
        return
    found = [_statistics(blocks) for blocks in calls]
    norm.running_mean.copy_(torch.stack([mean for mean, _ in found]).mean(0))
    norm.running_var.copy_(torch.stack([variance for _, variance in found]).mean(0))


def _statistics(blocks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and variance (C,) of blocks of inputs (N, C, H, W), in float64."""
    blocks = [single(block) for block in blocks]
    count = sum(block.numel() for block in blocks) // blocks[0].shape[1]
    total = [block.sum((0, 2, 3), dtype=torch.float64) for block in blocks]
    mean = torch.stack(total).sum(0) / count
    centre = mean.to(blocks[0].dtype)[:, None, None]
    squares = [(block - centre).square().sum((0, 2, 3), dtype=torch.float64) for block in blocks]
    return mean, torch.stack(squares).sum(0) / max(count - 1, 1)


def select(tensor: Tensor, indices: Tensor | None, dim: int = 1) -> Tensor:
    """Return ``tensor`` at ``indices`` of an axis; all of it for None."""
    return tensor if indices is None else tensor.index_select(dim, indices.to(tensor.device))
