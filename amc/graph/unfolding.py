"""A convolution or linear layer as a matrix product of its input patches and its weight.

A least-squares refit relies on ``outputs = patches @ weight^T + bias``. ``why_not_linear`` checks it for
layers that may compute something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.errors import out_of_memory
from amc.scoring.flatten import output_tensors

Padding = tuple[int, int, int, int]
"""Pixels added on the left, right, top and bottom of a map, as ``torch.nn.functional.pad`` takes them."""

POSITION_BLOCK = 32
"""Images that share the sampled positions; the same few positions for all images would not cover a map."""


def layer_input(args: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
    """Return the input of a layer, of any shape: the first tensor of floats in the arguments of its call."""
    return next(tensor for _, tensor in output_tensors([args, options]))


def single(values: Tensor) -> Tensor:
    """Return values of half precision, which a network under autocast has, in float32; others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def has_batch_axis(module: nn.Module, in_shape: torch.Size) -> bool:
    """Return whether an input of a layer has an axis before those of its channels and its map."""
    return len(in_shape) >= (2 if isinstance(module, nn.Linear) else 4)


def own_forward(module: nn.Module) -> bool:
    """Return whether a convolution or linear layer overrides PyTorch's forward."""
    base = next(each for each in (nn.Conv2d, nn.ConvTranspose2d, nn.Linear) if isinstance(module, each))
    names = ("forward", "_conv_forward") if base is nn.Conv2d else ("forward",)
    return "forward" in vars(module) or any(getattr(type(module), n) is not getattr(base, n) for n in names)


def padding_of(module: nn.Conv2d, inputs: Tensor) -> Padding:
    """Return the padding of a convolution for its input (N, C, H, W).

    A convolution with an overridden forward and no declared padding is assumed to pad as TensorFlow's
    "same": the output has ceil(size / stride) pixels, and an odd pixel is added at the end.
    ``why_not_linear`` refuses layers for which this is wrong.
    """
    if any(module._reversed_padding_repeated_twice) or not own_forward(module):
        left, right, top, bottom = module._reversed_padding_repeated_twice
        return left, right, top, bottom
    ends: list[int] = []
    for axis in (1, 0):
        size, stride = inputs.shape[2 + axis], module.stride[axis]
        reach = module.dilation[axis] * (module.kernel_size[axis] - 1) + 1
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        ends += [total // 2, total - total // 2]
    return ends[0], ends[1], ends[2], ends[3]


def output_size(module: nn.Conv2d, inputs: Tensor) -> tuple[int, int]:
    """Return the height and width of a convolution's output, in pixels, for its input (N, C, H, W)."""
    left, right, top, bottom = padding_of(module, inputs)
    sizes = (inputs.shape[2] + top + bottom, inputs.shape[3] + left + right)
    height, width = (
        (size - dilation * (kernel - 1) - 1) // stride + 1
        for size, dilation, kernel, stride in zip(
            sizes, module.dilation, module.kernel_size, module.stride, strict=True
        )
    )
    return height, width


def _transposed_size(module: nn.ConvTranspose2d, inputs: Tensor) -> tuple[int, int]:
    """Return the height and width of a transposed convolution's output, in pixels."""
    height, width = (
        (inputs.shape[2 + axis] - 1) * module.stride[axis]
        - 2 * int(module.padding[axis])
        + module.dilation[axis] * (module.kernel_size[axis] - 1)
        + module.output_padding[axis]
        + 1
        for axis in (0, 1)
    )
    return height, width


def weight_matrix(module: nn.Module) -> Tensor:
    """Return the weight of a layer as (out_channels, in_channels * kh * kw), in the order of its patches."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return (weight.transpose(0, 1) if isinstance(module, nn.ConvTranspose2d) else weight).flatten(1)


def weight_of(module: nn.Module, matrix: Tensor) -> Tensor:
    """Return the weight of a layer from a matrix (outputs, inputs * kh * kw) of any numbers of channels."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    own = matrix.reshape(len(matrix), -1, *weight.shape[2:])
    return own.transpose(0, 1).contiguous() if isinstance(module, nn.ConvTranspose2d) else own


def sample_positions(module: nn.Module, inputs: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """Choose output positions of a layer for a batch of inputs: (N, C, H, W), or (N, ..., features).

    Returns:
        (P,) int64 flat indices on the CPU: all positions, or ``limit`` random ones if there are more.
    """
    count = _positions(module, inputs)
    if count <= limit:
        return torch.arange(count)
    return torch.randperm(count, generator=generator)[:limit]


def _positions(module: nn.Module, inputs: Tensor) -> int:
    if isinstance(module, nn.Conv2d):
        return prod(output_size(module, inputs))
    if isinstance(module, nn.ConvTranspose2d):
        return prod(_transposed_size(module, inputs))
    return inputs[0].numel() // inputs.shape[-1]


def layer_patches(module: nn.Module, inputs: Tensor, chosen: Tensor) -> Tensor:
    """Unfold a layer's input at output positions.

    Args:
        inputs: (N, C, H, W) for a convolution, (N, ..., features) for a linear layer.
        chosen: (P,) flat output positions.

    Returns:
        (N * P, in_channels * kh * kw), image by image.
    """
    if isinstance(module, nn.ConvTranspose2d):
        return _transposed_patches(module, inputs, chosen)
    if not isinstance(module, nn.Conv2d):
        return inputs.reshape(len(inputs), -1, inputs.shape[-1])[:, chosen.to(inputs.device)].flatten(0, 1)
    _, width = output_size(module, inputs)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(inputs, padding_of(module, inputs), mode=mode).permute(0, 2, 3, 1)
    (kh, kw), (sy, sx), (dy, dx) = module.kernel_size, module.stride, module.dilation
    tap = torch.arange(kh * kw)
    rows = (chosen // width * sy)[:, None] + (tap // kw * dy)[None, :]
    columns = (chosen % width * sx)[:, None] + (tap % kw * dx)[None, :]
    count, _, across, channels = padded.shape
    places = (rows * across + columns).flatten().to(inputs.device)
    # All channels of a pixel are adjacent and are copied at once, which is several times as fast.
    taken = padded.reshape(count, -1, channels).index_select(1, places)
    return taken.view(-1, kh * kw, channels).transpose(1, 2).reshape(-1, channels * kh * kw)


def _transposed_patches(module: nn.ConvTranspose2d, inputs: Tensor, chosen: Tensor) -> Tensor:
    """Gather, for each tap of the kernel, the input pixel that it carries to an output position, or zeros."""
    _, width = _transposed_size(module, inputs)
    tap = torch.arange(prod(module.kernel_size))
    count, channels, *sizes = inputs.shape
    reached = torch.ones(len(chosen), len(tap), dtype=torch.bool)
    places = torch.zeros(len(chosen), len(tap), dtype=torch.int64)
    for axis, at, of_tap in (
        (0, chosen // width, tap // module.kernel_size[1]),
        (1, chosen % width, tap % module.kernel_size[1]),
    ):
        shifted = at[:, None] + int(module.padding[axis]) - of_tap[None, :] * module.dilation[axis]
        source = shifted.div(module.stride[axis], rounding_mode="floor")
        reached &= (shifted % module.stride[axis] == 0) & (source >= 0) & (source < sizes[axis])
        places = places * sizes[axis] + source.clamp(0, sizes[axis] - 1)
    pixels = inputs.permute(0, 2, 3, 1).reshape(count, -1, channels)
    taken = pixels.index_select(1, places.flatten().to(inputs.device)).view(count, *places.shape, channels)
    taken = taken * reached[None, :, :, None].to(taken)
    return taken.transpose(2, 3).reshape(-1, channels * len(tap))


def layer_rows(module: nn.Module, outputs: Tensor, chosen: Tensor) -> Tensor:
    """Take a layer's output at output positions.

    Args:
        outputs: (N, out_channels, H, W) for a convolution, (N, ..., out_features) for a linear layer.
        chosen: (P,) flat output positions.

    Returns:
        (N * P, out_channels), image by image.
    """
    chosen = chosen.to(outputs.device)
    if isinstance(
        module, nn.Conv2d | nn.ConvTranspose2d
    ):  # the channels of a linear layer are on the last axis, also for maps
        return outputs.flatten(2).transpose(1, 2).index_select(1, chosen).flatten(0, 1)
    return outputs.reshape(len(outputs), -1, outputs.shape[-1])[:, chosen].flatten(0, 1)


def block_positions(
    module: nn.Module, inputs: Sequence[Tensor], limit: int, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Choose output positions with ``sample_positions`` for each block of images.

    Returns:
        (P,) int64 flat indices of each block; fewer where a block with the images second has few images.
    """
    return tuple(sample_positions(module, block, limit, generator) for block in inputs)


def block_rows(module: nn.Module, outputs: Sequence[Tensor], chosen: Sequence[Tensor]) -> Tensor:
    """Take blocks of a layer's outputs with ``layer_rows``.

    Args:
        outputs: blocks of images.
        chosen: (P,) flat output positions of each block.

    Returns:
        (images * P, out_channels), image by image; not in half precision.
    """
    blocks = zip(outputs, chosen, strict=True)
    return torch.cat([single(layer_rows(module, block, own)) for block, own in blocks])


def why_not_linear(module: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, in_shape: torch.Size) -> str | None:
    """Return why a layer's weights cannot be cut and refitted as those of a matrix product, or None.

    Args:
        in_shape: shape of an input of the layer in the network.
    """
    kind = type(module).__name__
    own = {name for name, tensor in module._parameters.items() if tensor is not None}
    if "weight" not in own:
        return f"({kind}) computes its weight from other parameters (weight norm, spectral norm or the like)"
    if extra := sorted(own - {"weight", "bias"}):
        return f"({kind}) has parameters besides weight and bias: {', '.join(extra)}"
    hooked = bool(module._forward_pre_hooks or module._forward_hooks)
    changed = own_forward(module) or hooked
    if changed and (isinstance(module, nn.ConvTranspose2d) or not _tried_as_product(module, in_shape)):
        return f"({kind}) has a forward (or hook) of its own that is no plain product with its weight"
    return None


def _tried_as_product(module: nn.Conv2d | nn.Linear, in_shape: torch.Size) -> bool:
    """Return whether a layer equals a plain product; one that fails on one tensor does not."""
    try:
        return _is_product(module, in_shape)
    except Exception as error:  # a user's layer may raise anything
        if out_of_memory(error):
            raise
        return False


@torch.no_grad()
def _is_product(module: nn.Conv2d | nn.Linear, in_shape: torch.Size) -> bool:
    """Return whether a layer equals the product of its patches and its weight on a random input."""
    generator = torch.Generator().manual_seed(0)
    weight = module.weight
    inputs = torch.randn(in_shape, generator=generator).to(weight)
    groups = getattr(module, "groups", 1)
    outputs = module(inputs)
    chosen = sample_positions(module, inputs, 64, generator)
    if not isinstance(outputs, Tensor) or _positions(module, inputs) != outputs[0].numel() // len(weight):
        return False
    rows = layer_patches(module, inputs, chosen)
    patches = rows.reshape(len(rows), groups, -1)
    flat = weight.reshape(groups, len(weight) // groups, -1)
    product = torch.einsum("ngi,goi->ngo", patches, flat).flatten(1)
    if module.bias is not None:
        product = product + module.bias
    return torch.allclose(product, layer_rows(module, outputs, chosen), rtol=1e-3, atol=1e-4)
