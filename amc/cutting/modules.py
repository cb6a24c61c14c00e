"""How each kind of module is cut: one row of ``KINDS`` each.

A module has an output axis and, where it mixes channels, an input axis. Norm layers, PReLU and depthwise
convolutions have the output axis only. Any module may have bare parameters and buffers of one number a
channel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from amc.errors import NotPrunableError
from amc.graph.groups import Axis, Slot
from amc.models.shortcut import OptionAShortcut, sliced_source

Tensors = dict[str, Tensor]
"""Name of a parameter or buffer of one module -> its values."""


@dataclass(frozen=True)
class Keep:
    """Kept indices on the two axes of a module: (n,) int64, ascending; None leaves the axis whole.

    Attributes:
        bare: name of a bare parameter or buffer -> the axis that holds the channels, and the kept indices.
    """

    inputs: Tensor | None = None
    outputs: Tensor | None = None
    bare: Mapping[str, tuple[int, Tensor]] = field(default_factory=dict)


WHOLE = Keep()

VANISHING = 1e-30
"""For all that is added or multiplied with it as good as zero."""


@dataclass(frozen=True)
class ModuleKind:
    """How one kind of module is cut.

    Attributes:
        module_type: the class, subclasses included.
        lengths: (input, output) channels that a module declares.
        declare: makes the declared channels follow the tensors; the ``Keep`` tells what tensors do not.
        cut: parameters and buffers at the kept indices.
        silence: zeroes channels (indices on an axis) in place, the module keeps its shape.
    """

    module_type: type[nn.Module]
    lengths: Callable[[Any], tuple[int, int]]
    declare: Callable[[Any, Mapping[str, Tensor], Keep], None]
    cut: Callable[[Any, Keep], Tensors]
    silence: Callable[[Any, Axis, Tensor], None]


def kind_of(module: nn.Module) -> ModuleKind:
    """Return how a module is cut.

    Raises:
        NotPrunableError: no kind fits; channel groups never hold such a module.
    """
    for kind in KINDS:
        if isinstance(module, kind.module_type):
            return kind
    raise NotPrunableError(f"{type(module).__name__} cannot be sliced")


def axis_length(module: nn.Module, axis: Axis) -> int:
    """Return the number of positions on an axis of a module."""
    return kind_of(module).lengths(module)[axis == "out"]


def slot_length(module: nn.Module, slot: Slot) -> int:
    """Return the number of positions on the axis of a slot on ``module``."""
    if slot.tensor is None:
        return axis_length(module, slot.axis)
    return int(getattr(module, slot.tensor).shape[slot.dim])


def cut_tensors(module: nn.Module, keep: Keep = WHOLE) -> Tensors:
    """Return the parameters and buffers of ``module`` at the kept indices, without gradients.

    Of a module without a kind they are the bare ones that are cut.
    """
    known = any(isinstance(module, kind.module_type) for kind in KINDS)
    if not known and not keep.bare:
        raise NotPrunableError(f"{type(module).__name__} cannot be sliced")
    tensors = kind_of(module).cut(module, keep) if known else {}
    for name, (dim, kept) in keep.bare.items():
        whole = getattr(module, name).detach()
        tensors[name] = whole.index_select(dim, kept.to(whole.device))
    return tensors


def install(module: nn.Module, tensors: Mapping[str, Tensor], keep: Keep = WHOLE) -> None:
    """Replace tensors of any module in place; the sizes that it declares follow.

    Args:
        keep: how the module was cut, where it was.
    """
    for name, tensor in tensors.items():
        if name in module._parameters:
            old = module._parameters[name]
            module._parameters[name] = nn.Parameter(tensor, requires_grad=old is None or old.requires_grad)
        else:
            module._buffers[name] = tensor
    for kind in KINDS:
        if isinstance(module, kind.module_type):
            kind.declare(module, tensors, keep)
            return


def silence(module: nn.Module, axis: Axis, indices: Tensor) -> None:
    """Zero channels of a module in place; its shape stays.

    Args:
        indices: (n,) int64 positions on the axis.
    """
    kind_of(module).silence(module, axis, indices)


def silence_bare(module: nn.Module, tensor: str, dim: int, indices: Tensor) -> None:
    """Make channels of a bare parameter or buffer vanishingly small in place.

    Nothing is added then. They are not zero, as a division by zero would not give zero for zero.

    Args:
        indices: (n,) int64 positions on the axis ``dim``.
    """
    with torch.no_grad():
        getattr(module, tensor).index_fill_(dim, indices, VANISHING)


def _cut_rows_and_columns(module: nn.Module, keep: Keep) -> Tensors:
    """Take rows of every tensor, and columns of the weight."""
    tensors: Tensors = {}
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        sliced = tensor.detach()
        if keep.outputs is not None and tensor.ndim > 0:
            sliced = sliced[keep.outputs]
        if keep.inputs is not None and name == "weight" and tensor.ndim > 1:
            sliced = sliced[:, keep.inputs]
        tensors[name] = sliced.contiguous()
    return tensors


def _silence_rows_or_columns(module: nn.Module, axis: Axis, indices: Tensor) -> None:
    """Zero columns of the weight, or rows of weight and bias."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    with torch.no_grad():
        if axis == "in":
            assert isinstance(weight, Tensor)
            weight[:, indices] = 0
            return
        for tensor in (weight, bias):
            if isinstance(tensor, Tensor):
                tensor[indices] = 0


def _cut_transposed(module: nn.ConvTranspose2d, keep: Keep) -> Tensors:
    """Take rows of the weight for the inputs, (in, out, kh, kw), and columns for the outputs."""
    rows, columns = (keep.outputs, None) if module.groups > 1 else (keep.inputs, keep.outputs)
    weight = module.weight.detach()
    weight = weight if rows is None else weight[rows]
    weight = weight if columns is None else weight[:, columns]
    tensors = {"weight": weight.contiguous()}
    if module.bias is not None:
        bias = module.bias.detach()
        tensors["bias"] = bias if keep.outputs is None else bias[keep.outputs]
    return tensors


def _silence_transposed(module: nn.ConvTranspose2d, axis: Axis, indices: Tensor) -> None:
    """Zero rows of the weight for inputs, and columns and biases for outputs."""
    with torch.no_grad():
        if axis == "in" or module.groups > 1:
            module.weight[indices] = 0
        else:
            module.weight[:, indices] = 0
        if axis == "out" and module.bias is not None:
            module.bias[indices] = 0


def _silence_nothing(module: nn.Module, axis: Axis, indices: Tensor) -> None:
    """Leave a module alone that gives 0 for 0."""


def _silence_sources(module: OptionAShortcut, axis: Axis, indices: Tensor) -> None:
    silent = indices if axis == "out" else torch.isin(module.source, indices)
    module.source[silent] = -1


def _is_depthwise(module: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    """Whether a convolution is depthwise; one that was cut to a single channel still is."""
    if module.groups == module.in_channels == module.out_channels and module.groups > 1:
        setattr(module, _DEPTHWISE, True)
    return getattr(module, _DEPTHWISE, False)


def _declare_conv(module: nn.Conv2d, tensors: Mapping[str, Tensor], keep: Keep) -> None:
    if (weight := tensors.get("weight")) is None:
        return
    if _is_depthwise(module):
        module.groups = weight.shape[0]
    module.out_channels = weight.shape[0]
    module.in_channels = weight.shape[1] * module.groups


def _declare_transposed(module: nn.ConvTranspose2d, tensors: Mapping[str, Tensor], keep: Keep) -> None:
    if (weight := tensors.get("weight")) is None:
        return
    if _is_depthwise(module):
        module.groups = weight.shape[0]
    module.in_channels = weight.shape[0]
    module.out_channels = weight.shape[1] * module.groups


def _declare_linear(module: nn.Linear, tensors: Mapping[str, Tensor], keep: Keep) -> None:
    if (weight := tensors.get("weight")) is not None:
        module.out_features, module.in_features = weight.shape


def _declare_norm(module: nn.modules.batchnorm._NormBase, tensors: Mapping[str, Tensor], keep: Keep) -> None:
    if keep.outputs is not None:
        module.num_features = len(keep.outputs)
        return
    for name in ("weight", "running_mean"):
        if name in tensors:
            module.num_features = len(tensors[name])
            return


def _declare_prelu(module: nn.PReLU, tensors: Mapping[str, Tensor], keep: Keep) -> None:
    if (weight := tensors.get("weight")) is not None:
        module.num_parameters = weight.shape[0]


def _declare_shortcut(module: OptionAShortcut, tensors: Mapping[str, Tensor], keep: Keep) -> None:
    module.out_channels = len(module.source)
    if keep.inputs is not None:
        module.in_channels = len(keep.inputs)


_DEPTHWISE = "_amc_depthwise"
"""Attribute of depthwise convolutions: with one channel they look like ordinary ones."""
CONV = ModuleKind(
    nn.Conv2d,
    lambda module: (module.in_channels, module.out_channels),
    _declare_conv,
    _cut_rows_and_columns,
    _silence_rows_or_columns,
)
TRANSPOSED = ModuleKind(
    nn.ConvTranspose2d,
    lambda module: (module.in_channels, module.out_channels),
    _declare_transposed,
    _cut_transposed,
    _silence_transposed,
)
LINEAR = ModuleKind(
    nn.Linear,
    lambda module: (module.in_features, module.out_features),
    _declare_linear,
    _cut_rows_and_columns,
    _silence_rows_or_columns,
)
NORM = ModuleKind(
    nn.modules.batchnorm._NormBase,
    lambda module: (module.num_features, module.num_features),
    _declare_norm,
    _cut_rows_and_columns,
    _silence_rows_or_columns,
)
PRELU = ModuleKind(
    nn.PReLU,
    lambda module: (module.num_parameters, module.num_parameters),
    _declare_prelu,
    _cut_rows_and_columns,
    _silence_nothing,
)
SHORTCUT = ModuleKind(
    OptionAShortcut,
    lambda module: (module.in_channels, module.out_channels),
    _declare_shortcut,
    lambda module, keep: {"source": sliced_source(module, keep.inputs, keep.outputs)},
    _silence_sources,
)
KINDS: tuple[ModuleKind, ...] = (CONV, TRANSPOSED, LINEAR, NORM, PRELU, SHORTCUT)
"""All kinds of modules that channel groups may hold; the first that fits counts."""
