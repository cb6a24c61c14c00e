"""How each kind of module is cut: the lengths of its axes, its tensors, its declared sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from amc.errors import AmcError
from amc.models import OptionAShortcut


@dataclass(frozen=True)
class Keep:
    """Kept indices on the two axes of a module, ascending; None leaves the axis whole."""

    inputs: Tensor | None = None
    outputs: Tensor | None = None


def _axis_length(module: nn.Module, axis: str) -> int:
    match module:
        case nn.Conv2d() | OptionAShortcut():
            return module.in_channels if axis == "in" else module.out_channels
        case nn.Linear():
            return module.in_features if axis == "in" else module.out_features
        case nn.modules.batchnorm._NormBase():
            return module.num_features
        case nn.PReLU():
            return module.num_parameters
    raise AmcError(f"{type(module).__name__} cannot be sliced")  # pragma: no cover - graph lists such groups


def sliced_tensors(module: nn.Module, keep: Keep) -> dict[str, Tensor]:
    """Return the parameters and buffers of ``module`` at the kept indices, as new tensors."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        sliced = tensor.detach()
        if keep.outputs is not None and tensor.ndim > 0:
            sliced = sliced[keep.outputs]
        if keep.inputs is not None and name == "weight" and tensor.ndim > 1:
            sliced = sliced[:, keep.inputs]
        tensors[name] = sliced.contiguous()
    return tensors


def set_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace tensors of ``module`` in place and make its declared sizes follow them."""
    for name, tensor in tensors.items():
        if name in module._parameters:
            old = module._parameters[name]
            module._parameters[name] = nn.Parameter(tensor, requires_grad=old is None or old.requires_grad)
        else:
            module._buffers[name] = tensor
    weight = tensors.get("weight")
    if weight is None:
        return
    if isinstance(module, nn.Conv2d):
        if module.groups == module.in_channels == module.out_channels and module.groups > 1:
            module.groups = weight.shape[0]  # depthwise
        module.out_channels = weight.shape[0]
        module.in_channels = weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = weight.shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = weight.shape[0]
