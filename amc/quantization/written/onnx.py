"""How the operators of quantized networks are written in ONNX, with the same numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from amc.quantization import operators
from amc.quantization.layers import IntegerLayer, RoundTrip
from amc.quantization.settings import SMALL_SINCE

if TYPE_CHECKING:
    import onnx
    from torch import nn

_LARGEST_4_BITS = 7


def least_opset(model: nn.Module) -> int | None:
    """Return the version of ONNX's operators that a network needs, or None for any."""
    layers = [each for each in model.modules() if isinstance(each, IntegerLayer)]
    return SMALL_SINCE if any(each.block for each in layers) or packs(model) else None


def packs(model: nn.Module) -> bool:
    """Return whether two weights of a network go into a byte.

    Kernels on integers take whole bytes, so the weights of networks with quantized activations stay bytes.
    """
    modules = list(model.modules())
    layers = [each for each in modules if isinstance(each, IntegerLayer)]
    rounded = any(isinstance(each, RoundTrip) for each in modules)
    return not rounded and any(_is_small(each.integers) for each in layers)


@functools.cache
def translations() -> Mapping[Any, Callable[..., Any]]:
    """Return operator of torch -> function that writes it; made at the first use, as onnxscript is slow."""
    import onnxscript

    opset18: Any = onnxscript.opset18
    opset21: Any = onnxscript.opset21

    def round_trip(values: Any, scale: Any, zero_point: Any) -> Any:
        whole = opset18.QuantizeLinear(values, scale, zero_point)
        return opset18.DequantizeLinear(whole, scale, zero_point)

    def dequantize(integers: Any, scale: Any, block: int, shape: Any) -> Any:
        if not block:
            return opset18.DequantizeLinear(integers, scale, axis=0)
        flat = opset21.DequantizeLinear(integers, scale, axis=1, block_size=block)
        return opset18.Reshape(flat, opset18.Constant(value_ints=list(shape)))

    def dynamic_conv2d(
        values: Any,
        integers: Any,
        scale: Any,
        bias: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
    ) -> Any:
        whole, step, zero = opset18.DynamicQuantizeLinear(values)
        sums = opset18.ConvInteger(
            whole,
            integers,
            zero,
            dilations=list(dilation),
            group=groups,
            pads=[*padding, *padding],
            strides=list(stride),
        )
        channel = opset18.Constant(value_ints=[1, -1, 1, 1])
        steps = opset18.Reshape(opset18.Mul(step, scale), channel)
        return opset18.Add(opset18.Mul(opset18.Cast(sums, to=1), steps), opset18.Reshape(bias, channel))

    def dynamic_linear(values: Any, integers: Any, scale: Any, bias: Any) -> Any:
        whole, step, zero = opset18.DynamicQuantizeLinear(values)
        turned = opset18.Transpose(integers, perm=[1, 0])
        sums = opset18.Cast(opset18.MatMulInteger(whole, turned, zero), to=1)
        return opset18.Add(opset18.Mul(sums, opset18.Mul(step, scale)), bias)

    written = (round_trip, dequantize, dynamic_conv2d, dynamic_linear)
    library = torch.ops.amc
    assert operators  # registers them
    return {getattr(library, each.__name__).default: each for each in written}


def slim(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Drop where in the source each operator comes from, in place: small networks would be half of that."""
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for each in (*proto.graph.value_info, *proto.graph.initializer, *proto.graph.input, *proto.graph.output):
        del each.metadata_props[:]
    del proto.graph.value_info[:]
    return proto


def packed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Store weights of at most 4 bits as such, two in a byte, in place; see ``packs``."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weights = {node.input[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    for tensor in proto.graph.initializer:
        if tensor.name not in weights or tensor.data_type != TensorProto.INT8:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size and np.abs(values).max() <= _LARGEST_4_BITS:
            small = helper.make_tensor(tensor.name, TensorProto.INT4, values.shape, values.flatten())
            tensor.CopyFrom(small)
    return proto


def _is_small(integers: torch.Tensor) -> bool:
    return bool(integers.abs().max() <= _LARGEST_4_BITS)
