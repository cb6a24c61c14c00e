"""Least-squares refit of a layer that lost input channels, from second moments instead of features.

With ``Y = X W^T`` the best weights on the kept columns S of X need only ``G = X^T X`` (He et al., Channel
Pruning, ICCV 2017, eq. 4, in normal form): ``W' = (G_SS + r I)^-1 (G_S: W^T + r W_S^T)``. The ridge pulls
towards the original weights, so that keeping everything changes nothing. X is the layer's input unfolded
to patches, with a column of ones so that the bias is refitted too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amc.errors import AmcError
from amc.graph.groups import Graph
from amc.graph.unfolding import layer_input, layer_patches, sample_positions
from amc.rows import products
from amc.scoring.run import evaluating


@dataclass(frozen=True)
class Moments:
    """Second moments of a layer's input.

    Attributes:
        gram: (D + 1, D + 1) float64, ``[X, 1]^T [X, 1] / rows``; D = in_channels * kh * kw.
        rows: number of patches seen.
    """

    gram: Tensor
    rows: int


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


def refit_layers(graph: Graph) -> tuple[str, ...]:
    """Return the layers that read prunable channels, in forward order."""
    readers = {name for group in graph.groups for name in group.readers}
    return tuple(layer.name for layer in graph.layers if layer.name in readers)


@torch.inference_mode()
def collect_moments(
    model: nn.Module,
    layers: Sequence[str],
    images: Tensor,
    *,
    positions_per_image: int = 16,
    batch_size: int = 50,
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
) -> dict[str, Moments]:
    """Collect the second moments of every named layer in one pass, in eval mode.

    Args:
        images: calibration images (N, C, H, W), normalised.
        positions_per_image: output positions sampled from each image (all, where a map has fewer).
        progress: called with the number of images done after every batch.
    """
    modules = dict(model.named_modules())
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, Tensor] = {}
    rows: dict[str, int] = dict.fromkeys(layers, 0)

    def record(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], options: dict[str, Tensor]) -> None:
            inputs = layer_input(args, options)
            chosen = sample_positions(module, inputs, positions_per_image, generator)
            patches = layer_patches(module, inputs, chosen)
            extended = torch.cat([patches, patches.new_ones(len(patches), 1)], dim=1)
            gram = products(extended, extended)
            sums[name] = sums[name].add_(gram) if name in sums else gram
            rows[name] += len(extended)

        return hook

    hooks = [modules[name].register_forward_pre_hook(record(name), with_kwargs=True) for name in layers]
    try:
        with evaluating(model):
            for start in range(0, len(images), batch_size):
                batch = images[start : start + batch_size]
                model(batch)
                if progress is not None:
                    progress(len(batch))
    finally:
        for hook in hooks:
            hook.remove()
    for name, gram in sums.items():
        if not torch.isfinite(gram).all():
            raise AmcError(
                f"the input of layer {name!r} is not finite on the calibration images; NaN weights?"
            )
    return {name: Moments((sums[name] / rows[name]).cpu(), rows[name]) for name in layers}


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
    return _factorise(gram[order][:, order], penalty, skip=ones), target


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


def _factorise(system: Tensor, penalty: float, *, skip: int) -> Tensor:
    """Cholesky factor of ``system + penalty I`` (the first ``skip`` diagonal entries left alone).

    Dead inputs make moments singular; the penalty grows until the factorisation succeeds.
    """
    for _ in range(12):
        ridged = system.clone()
        ridged.diagonal()[skip:] += penalty
        factor, failed = torch.linalg.cholesky_ex(ridged)
        if not failed:
            return factor
        penalty = max(10 * penalty, 1e-12)
    raise AmcError("the second moments of a layer's input cannot be factorised; is its input finite?")


class RefitCache:
    """Refits by (layer, kept columns), so that an episode looks weights up; least recently used go first.

    Args:
        solve: ``(layer, kept input channels, ascending) -> Refit``.
        limit_bytes: bound on the memory held.
    """

    def __init__(self, solve: Callable[[str, Tensor], Refit], limit_bytes: int) -> None:
        self._solve = solve
        self._limit = limit_bytes
        self._entries: dict[tuple[str, bytes], Refit] = {}
        self._bytes = 0

    def __call__(self, layer: str, channels: Tensor) -> Refit:
        """Return the refit of ``layer`` when only ``channels`` of its input are kept."""
        key = (layer, channels.numpy().tobytes())
        found = self._entries.pop(key, None)
        if found is None:
            found = self._solve(layer, channels)
            self._bytes += found.nbytes
        self._entries[key] = found
        while self._bytes > self._limit and len(self._entries) > 1:
            oldest = next(iter(self._entries))
            self._bytes -= self._entries.pop(oldest).nbytes
        return found


def has_intercept(graph: Graph, modules: Mapping[str, nn.Module], layer: str) -> bool:
    """Whether a constant can be added to a layer's output: into its bias or the batch norm after it."""
    norm = modules.get(graph.norm_after.get(layer, ""))
    tracked = isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
    return getattr(modules[layer], "bias", None) is not None or tracked
