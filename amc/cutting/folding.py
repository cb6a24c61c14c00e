"""A batch norm in eval mode, folded into the convolution before it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module without its children."""
    own = itertools.chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
    return {name: tensor.detach() for name, tensor in own}


def fold(conv: Mapping[str, Tensor], norm: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Fold a batch norm in eval mode into the convolution before it.

    Args:
        conv: ``weight`` (out, in / groups, kh, kw) and, if there is one, ``bias`` (out,).
        norm: ``running_mean`` and ``running_var``, and ``weight`` and ``bias`` if it has them; each (out,).
        module: the batch norm, for its ``eps``.

    Returns:
        ``weight`` and ``bias`` of the one convolution that replaces both.
    """
    scale = torch.rsqrt(norm["running_var"] + float(module.eps))  # type: ignore[arg-type]
    if "weight" in norm:
        scale = scale * norm["weight"]
    bias = conv.get("bias", torch.zeros_like(scale)) - norm["running_mean"]
    return {
        "weight": conv["weight"] * scale[:, None, None, None],
        "bias": bias * scale + norm.get("bias", torch.zeros_like(scale)),
    }
