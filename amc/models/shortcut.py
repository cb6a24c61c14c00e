"""The parameter-free shortcut of CIFAR ResNets (option A of He et al. 2016), and how its channels are cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def option_a_source(in_channels: int, out_channels: int) -> Tensor:
    """Return the channel map of the dense option-A shortcut.

    Returns:
        (out_channels,) int64: the input channel that each output channel copies, or -1 for a zero channel.
        Zero channels lie on both sides, as in akamaster's ``F.pad``.
    """
    index = torch.arange(out_channels) - (out_channels - in_channels) // 2
    return torch.where((index >= 0) & (index < in_channels), index, -1)


class OptionAShortcut(nn.Module):
    """Parameter-free shortcut: subsample the map, copy channels, fill the other channels with zeros.

    Maps (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)). It uses neither a
    slice nor a pad, through which graph-based pruners cannot follow channels. Pruning changes only ``source``
    and the two channel counts.

    Attributes:
        source: (out_channels,) int64, as ``option_a_source`` returns it for the dense shortcut.
    """

    source: Tensor

    def __init__(self, in_channels: int, out_channels: int, stride: int = 2) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride
        self.register_buffer("source", option_a_source(in_channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the shortcut to a map of shape (N, in_channels, H, W)."""
        if self.stride != 1:
            x = F.avg_pool2d(x, 1, self.stride)
        present = self.source >= 0
        indices = self.source * present  # not a clamp, which Core ML computes in floats
        return x.index_select(1, indices) * present.to(x.dtype).view(1, -1, 1, 1)

    def extra_repr(self) -> str:
        """Show the channel counts and the stride in ``print(model)``."""
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}"

    def _is_dense(self) -> bool:
        dense = option_a_source(self.in_channels, self.out_channels).to(self.source.device)
        return torch.equal(self.source, dense)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Accept a dense shortcut without ``source``; refuse indices that are not input channels."""
        key = f"{prefix}source"
        if key not in state_dict and self._is_dense():
            state_dict = {**state_dict, key: self.source}
        source = state_dict.get(key)
        if (
            source is not None
            and source.numel()
            and not -1 <= source.min() <= source.max() < self.in_channels
        ):
            error_msgs.append(
                f"{key} holds {source.min()} to {source.max()}, expected -1 to {self.in_channels - 1}"
            )
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def sliced_source(module: OptionAShortcut, keep_in: Tensor | None, keep_out: Tensor | None) -> Tensor:
    """Return the channel map of a shortcut that is cut; a removed source becomes a zero channel.

    Args:
        keep_in, keep_out: (n,) int64 kept channels, ascending; None keeps all.

    Returns:
        (kept outputs,) int64, as ``option_a_source``.
    """
    source = module.source if keep_out is None else module.source[keep_out]
    if keep_in is None:
        return source
    moved = torch.full((module.in_channels,), -1, dtype=source.dtype, device=source.device)
    moved[keep_in] = torch.arange(len(keep_in), dtype=source.dtype, device=source.device)
    return torch.where(source >= 0, moved[source.clamp(min=0)], source)


def slice_shortcut(module: OptionAShortcut, keep_in: Tensor | None, keep_out: Tensor | None) -> None:
    """Cut a shortcut in place; see ``sliced_source``."""
    module.source = sliced_source(module, keep_in, keep_out)
    module.out_channels = len(module.source)
    if keep_in is not None:
        module.in_channels = len(keep_in)
