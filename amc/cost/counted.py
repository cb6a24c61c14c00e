"""fvcore's count of multiply-adds in the traced network, independent of the closed form."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from math import prod
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.errors import NotPrunableError, first_line
from amc.graph.layers import noise_image
from amc.graph.recording import without_checkpoints
from amc.scoring.flatten import as_matrix
from amc.scoring.run import evaluating, settle

_PRODUCTS = ("conv", "linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "attention", "recurrent")
"""Operators that are counted; normalisation, pooling and interpolation are not."""


def count_macs(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Count the multiply-adds of convolutions, linear and recurrent layers and matrix products for one image.

    Args:
        input_shape: (channels, height, width) of the image, in pixels.

    Raises:
        NotPrunableError: fvcore cannot trace the network.
    """
    try:
        with warnings.catch_warnings(), _plain_attention(), _any_unpooling(), without_checkpoints():
            warnings.filterwarnings("ignore", message="`torch.jit")
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
            return _count(model, input_shape)
    except Exception as error:  # tracing a user's network may raise anything
        reason = first_line(error)
        raise NotPrunableError(
            f"the multiply-adds of {type(model).__name__} cannot be counted: {type(error).__name__}: {reason}"
        ) from error
    finally:
        settle(model)


def _count(model: nn.Module, input_shape: Sequence[int]) -> int:
    from fvcore.nn import FlopCountAnalysis

    # without gradients, as a network may keep results in a list: with them it could not be copied any more
    with torch.no_grad(), evaluating(model):
        counter = FlopCountAnalysis(_Matrix(model).eval(), noise_image(model, input_shape))
        counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        counter.set_op_handle("aten::scaled_dot_product_attention", _attention)
        counter.set_op_handle("aten::_convolution_mode", _padded_convolution)
        counter.set_op_handle("aten::matmul", _matmul)
        counter.set_op_handle("aten::baddbmm", _baddbmm)
        counter.set_op_handle("aten::einsum", _einsum)
        counter.set_op_handle("torchvision::deform_conv2d", _padded_convolution)
        for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):  # their cells are linear layers in the trace
            counter.set_op_handle(f"aten::{name}", _recurrent)
        logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
        return int(sum(count for name, count in counter.by_operator().items() if name in _PRODUCTS))


class _Matrix(nn.Module):
    """A network whose output is one matrix, as tracing does not accept dictionaries."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return as_matrix(self.network(images), len(images))


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Turn off PyTorch's fused fast path of attention, whose operations are not visible to a counter."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _any_unpooling() -> AbstractContextManager[Any]:
    """Leave out a check of sizes in ``max_unpool``, which fails on those that a tracer gives it."""
    return mock.patch.object(F, "_check_unpool_output_size", return_value=None, create=True)


def _padded_convolution(inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """Count a convolution that fvcore skips (padding by name, deformable): the taps of every output."""
    weight, output = inputs[1].type().sizes(), outputs[0].type().sizes()
    return Counter({"conv": prod(output) * prod(weight[1:])})


def _matmul(inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """Count a product of any two tensors; fvcore's own count fails for vectors and misses broadcasting."""
    return Counter({"matmul": prod(outputs[0].type().sizes()) * inputs[0].type().sizes()[-1]})


def _baddbmm(inputs: Sequence[Any], _outputs: Sequence[Any]) -> Any:
    """Count a sum and a batched product, as attention with a mask has it."""
    return Counter({"baddbmm": prod(inputs[1].type().sizes()) * inputs[2].type().sizes()[-1]})


def _einsum(inputs: Sequence[Any], _outputs: Sequence[Any]) -> Any:
    """Count products of two operands at a time, from the left; one without a sum is no matrix product."""
    equation = str(inputs[0].toIValue()).replace(" ", "")
    shapes = [each.type().sizes() for each in inputs[1].node().inputs()]
    left, arrow, result = equation.partition("->")
    terms = [_letters(term, len(shape)) for term, shape in zip(left.split(","), shapes, strict=True)]
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        sizes |= {name: max(size, sizes.get(name, 1)) for name, size in zip(term, shape, strict=True)}
    named = [name for term in terms for name in term]
    stays = set(_letters(result, len(sizes))) if arrow else {n for n in named if named.count(n) == 1}
    count, present = 0, set(terms[0])
    for place, term in enumerate(terms[1:], start=2):
        present |= set(term)
        needed = stays.union(*terms[place:])
        count += prod(sizes[name] for name in present) if present - needed else 0
        present &= needed
    return Counter({"einsum": count})


def _letters(term: str, axes: int) -> list[str]:
    """Return a name for each axis of an operand; those of an ellipsis are numbered from the last one."""
    before, dots, after = term.partition("...")
    free = range(axes - len(before) - len(after), 0, -1) if dots else ()
    return [*before, *(f".{number}" for number in free), *after]


def _attention(inputs: Sequence[Any], _outputs: Sequence[Any]) -> Any:
    """Count softmax(Q K^T) V: every query times every key, and every weight times every value."""
    query, key, value = (each.type().sizes() for each in inputs[:3])
    return Counter({"attention": prod(query[:-1]) * key[-2] * (query[-1] + value[-1])})


def _recurrent(inputs: Sequence[Any], _outputs: Sequence[Any]) -> Any:
    """Count a recurrent layer: at every step of every sequence, the matrices of all layers and directions.

    Of its parameters the matrices alone have two axes; states, which may be in a list as well, have three.
    """
    lists = [each.node() for each in inputs[1:] if each.node().kind() == "prim::ListConstruct"]
    shapes = [tensor.type().sizes() for each in lists for tensor in each.inputs()]
    weights = sum(prod(shape) for shape in shapes if len(shape) == 2)
    return Counter({"recurrent": prod(inputs[0].type().sizes()[:-1]) * weights})
