"""The inputs of a layer at sampled output positions, as a least-squares fit reads them.

Every input of an output position is a column of a matrix. The columns are ordered by tap and then by channel,
as maps in channels_last hold them, so that pixels are copied whole and nothing is transposed; padding is
filled in afterwards. ``layer_patches`` orders them as the weights do, which costs several times as much.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.graph.unfolding import output_size, padding_of, single


@dataclass(frozen=True)
class Taps:
    """Where the inputs of a layer's output positions lie; the same for every number of channels.

    Attributes:
        places: (positions * taps,) int64, pixels of the input map, counted row by row.
        outside: (n,) int64, which of them lie outside the map, where the input is zero.
        count: taps of the kernel, kh * kw; 1 for a linear layer.
    """

    places: Tensor
    outside: Tensor
    count: int


def taps_of(module: nn.Conv2d | nn.Linear, inputs: Tensor, chosen: Tensor) -> Taps:
    """Locate the inputs of output positions.

    Args:
        inputs: (N, C, H, W) for a convolution, (N, ..., features) for a linear layer.
        chosen: (P,) flat output positions.
    """
    if not isinstance(module, nn.Conv2d):
        return Taps(chosen.to(inputs.device), chosen.new_empty(0).to(inputs.device), 1)
    _, across = output_size(module, inputs)
    left, right, top, bottom = padding_of(module, inputs)
    height, width = inputs.shape[2:]
    if module.padding_mode != "zeros":  # `columns` pads such a map, so that no place is outside
        height, width = height + top + bottom, width + left + right
        left = top = 0
    (kh, kw), (sy, sx), (dy, dx) = module.kernel_size, module.stride, module.dilation
    tap = torch.arange(kh * kw, device=chosen.device)
    rows = ((chosen // across * sy)[:, None] + tap // kw * dy - top).flatten()
    columns = ((chosen % across * sx)[:, None] + tap % kw * dx - left).flatten()
    outside = (rows < 0) | (rows >= height) | (columns < 0) | (columns >= width)
    places = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    return Taps(places.to(inputs.device), outside.nonzero().flatten().to(inputs.device), kh * kw)


def columns(module: nn.Conv2d | nn.Linear, inputs: Tensor, taps: Taps) -> Tensor:
    """Gather a layer's inputs at output positions.

    Args:
        inputs: as for ``taps_of``, with any number of channels.

    Returns:
        (groups, taps * channels / groups, N * P): for every group of outputs its inputs, tap by tap; the
        positions image by image. They are not in half precision.
    """
    groups = 1
    if isinstance(module, nn.Conv2d):
        groups = module.groups
        if module.padding_mode != "zeros":
            inputs = F.pad(inputs, padding_of(module, inputs), mode=module.padding_mode)
        pixels = inputs.permute(0, 2, 3, 1).flatten(1, 2)
    else:
        pixels = inputs.reshape(len(inputs), -1, inputs.shape[-1])
    taken = single(pixels.index_select(1, taps.places))
    if len(taps.outside):
        taken.index_fill_(1, taps.outside, 0)
    parted = taken.view(-1, taps.count, groups, taken.shape[-1] // groups).permute(2, 1, 3, 0).flatten(1, 2)
    return parted.contiguous() if groups > 1 else parted  # a batched product would copy it at every use


def weight_to_columns(module: nn.Conv2d | nn.Linear) -> Tensor:
    """Return a layer's weight as (groups, columns, outputs of a group): ``columns.mT @`` it is the output."""
    groups, weight = getattr(module, "groups", 1), module.weight.detach()
    parted = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
    return parted.permute(0, 3, 2, 1).flatten(1, 2)


def weight_of_columns(module: nn.Conv2d | nn.Linear, matrix: Tensor) -> Tensor:
    """Return the weight of a layer from what ``weight_to_columns`` makes of it."""
    shape = module.weight.shape
    parted = matrix.view(len(matrix), -1, shape[1], matrix.shape[-1])
    return parted.permute(0, 3, 2, 1).reshape(shape)
