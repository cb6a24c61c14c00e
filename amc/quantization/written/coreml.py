"""How the operators of quantized networks are written for Core ML, with the same numbers.

Weights are blocks of integers with scales (``constexpr_blockwise_shift_scale``, from iOS 18 on), of 4 bits
where they fit; activations are quantized and dequantized.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from amc.errors import AmcError
from amc.quantization.layers import IntegerLayer

if TYPE_CHECKING:
    from torch import nn

_LARGEST_4_BITS = 7
_WEIGHTS = "constexpr_blockwise_shift_scale"


@functools.cache
def register() -> None:
    """Tell coremltools how to write this project's operators."""
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs
    from coremltools.converters.mil.frontend.torch.torch_op_registry import register_torch_op
    from coremltools.converters.mil.mil import types

    small_integers = types.nptype_from_builtin(types.int4)

    def round_trip(context: Any, node: Any) -> None:
        values, scale, zero = _get_inputs(context, node, expected=3)
        grid = {"scale": np.float32(scale.val), "zero_point": np.uint8(zero.val)}
        whole = Builder.quantize(input=values, **grid, output_dtype="uint8")
        context.add(Builder.dequantize(input=whole, **grid, name=node.name))

    def dequantize(context: Any, node: Any) -> None:
        integers, scale, block, shape = _get_inputs(context, node, expected=4)
        whole, steps = integers.val, scale.val.astype(np.float32)
        if whole.ndim == 1:  # a bias
            context.add(Builder.const(val=whole.astype(np.float32) * steps, name=node.name))
            return
        small = whole.size and np.abs(whole).max() <= _LARGEST_4_BITS
        data = whole.astype(small_integers if small else np.int8)
        if not int(block.val):
            wide = steps.reshape(-1, *[1] * (whole.ndim - 1))
            context.add(Builder.constexpr_blockwise_shift_scale(data=data, scale=wide, name=node.name))
            return
        flat = Builder.constexpr_blockwise_shift_scale(data=data, scale=steps)
        sizes = [int(each) for each in np.ravel(shape.val)]
        context.add(Builder.reshape(x=flat, shape=sizes, name=node.name))

    for write in (round_trip, dequantize):
        names = [f"amc::{write.__name__}", f"amc.{write.__name__}"]
        write.__name__ = f"amc_{write.__name__}"
        register_torch_op(torch_alias=names)(write)


def check_weights(program: Any, model: nn.Module) -> int:
    """Return how many weights of a Core ML program are the integers and scales of a quantized network.

    Args:
        program: a MIL program, as read back from a file.
        model: the network that it was made from.

    Raises:
        AmcError: a layer is missing, or has other numbers.
    """
    found = [
        (op.data.val.astype(np.int8), np.asarray(op.scale.val, dtype=np.float32))
        for op in program.functions["main"].find_ops(op_type=_WEIGHTS)
    ]
    wanted = [layer for layer in model.modules() if isinstance(layer, IntegerLayer)]
    for layer in wanted:
        integers, scale = layer.integers.numpy(), layer.scale.numpy()
        if not any(
            data.size == integers.size
            and np.array_equal(data.ravel(), integers.ravel())
            and np.array_equal(steps.ravel(), scale.ravel())
            for data, steps in found
        ):
            raise AmcError(
                f"the coreml file does not hold the integers of a layer of shape {layer.shape}; likely "
                "cause: another version of coremltools"
            )
    return len(wanted)
