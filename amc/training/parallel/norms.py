"""Batch norms whose statistics are those of the whole batch, over all processes, on a CPU as on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode


@contextmanager
def synced_norms(model: nn.Module) -> Iterator[None]:
    """Let the batch norms of ``model`` share their statistics in training mode during the block.

    Classes of batch norms that do more than normalise, as those of timm, still do it.
    """
    norms = [each for each in model.modules() if isinstance(each, _BatchNorm)]
    for norm in norms:
        norm.forward = partial(_forward, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


@torch.compiler.disable  # it would be compiled anew for each norm
def _forward(norm: _BatchNorm, values: Tensor) -> Tensor:
    """Run the norm's own ``forward`` with ``batch_norm`` in place of PyTorch's."""
    # that of SyncBatchNorm refuses CPUs
    own = _BatchNorm.forward if isinstance(norm, nn.SyncBatchNorm) else type(norm).forward
    with _Sharing():
        return own(norm, values)


class _Sharing(TorchFunctionMode):
    """Calls ``batch_norm`` where ``torch.nn.functional.batch_norm`` is called."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def batch_norm(
    values: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Compute ``torch.nn.functional.batch_norm`` with the mean and variance over the values of all processes.

    Args:
        values: (N, C, ...).
        running_mean, running_var: (C,); in training they move by ``momentum``.
        weight, bias: (C,).
        training: use the statistics of the values, not the running ones.
        eps: added to the variance.
    """
    if not training:
        return F.batch_norm(values, running_mean, running_var, weight, bias, False, momentum, eps)
    found, mean, variance, count = _SyncedNorm.apply(values, weight, bias, eps)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * (count / (count - 1)), momentum)
    return found


class _SyncedNorm(torch.autograd.Function):
    """Values (N, C, ...) -> normalised values, mean (C,), biased variance (C,), values per channel.

    All passes over the values are PyTorch's own kernels of batch norms: operations that broadcast over the
    channels take several times as long.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        own = values.numel() // values.shape[1]
        mean, variance = torch.batch_norm_update_stats(values.float(), None, None, 0.0)
        mean, variance = mean.double(), variance.double()
        sums = torch.cat([mean * own, (variance + mean**2) * own, mean.new_tensor([own])])
        dist.all_reduce(sums)
        count, channels = float(sums[-1]), values.shape[1]
        whole = sums[:channels] / count
        spread = (sums[channels:-1] / count - whole**2).clamp_min(0)
        mean, variance = whole.float(), spread.float()
        ctx.save_for_backward(values, weight, mean, torch.rsqrt(variance + eps))
        ctx.count = count
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(values, mean, variance, weight, bias, False, 0.0, eps), mean, variance, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        given, weight, mean, inverse = ctx.saved_tensors
        values, upstream = given.float(), grad.float()
        _, product, total = torch.ops.aten.native_batch_norm_backward(
            upstream, values, torch.ones_like(mean), None, None, mean, inverse, True, 0.0, [False, True, True]
        )
        sums = torch.stack([total, product])
        dist.all_reduce(sums)
        scale = inverse if weight is None else inverse * weight
        # (gradient - its mean - normalised value * mean of their product) * scale: one line for each channel
        slope = -scale * inverse * sums[1] / ctx.count
        found = _line(values, slope, -scale * sums[0] / ctx.count - slope * mean)
        found = found.add_(_line(upstream, scale, None)).to(given.dtype)
        if weight is None:
            return found, None, None, None
        return found, product, total, None


def _line(values: Tensor, slope: Tensor, offset: Tensor | None) -> Tensor:
    """Return values (N, C, ...) times a slope (C,) plus an offset (C,)."""
    zero, one = torch.zeros_like(slope), torch.ones_like(slope)
    return F.batch_norm(values, zero, one, slope, offset, False, 0.0, 0.0)
