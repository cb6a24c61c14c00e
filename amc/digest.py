"""The one hash function for fingerprints of networks, data and settings."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""Where an object lies in memory, as functions print it."""


def digest(*parts: str | bytes | Tensor) -> str:
    """Return the SHA-256 of all parts, one after the other, as 64 hexadecimal digits.

    A string is hashed as its UTF-8 bytes, a tensor of any shape as its raw values in row-major order. Shape
    and type are not hashed: pass them as parts of their own if they may differ.
    """
    hashed = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            hashed.update(part.encode())
        elif isinstance(part, bytes):
            hashed.update(part)
        else:
            hashed.update(_values(part))
    return hashed.hexdigest()


def named(tensors: Mapping[str, Tensor]) -> list[str | Tensor]:
    """Return the names and tensors of a state dict, one after the other, as parts for ``digest``."""
    return [part for item in tensors.items() for part in item]


def unsaved(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers of a network that its state dict lacks, such as the mean of its images, or masks."""
    saved = model.state_dict()
    return {name: buffer for name, buffer in model.named_buffers() if name not in saved}


def shown(model: nn.Module) -> str:
    """Return what a network prints about its modules, such as dropout, activations and paddings."""
    return _ADDRESS.sub("", repr(model))


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 (hex) of the names, shapes, types and values of tensors."""
    about = {f"{name} {tuple(tensor.shape)} {tensor.dtype}": tensor for name, tensor in state.items()}
    return digest(*named(about))


def network_digest(model: nn.Module, *origin: str) -> str:
    """Return a SHA-256 (hex) of all that tells a network in training from another, as far as modules show it.

    Beside tensors, also those of buffers outside the state dict, it is what modules print about themselves,
    such as dropout and activations, and which parameters train. Plain values that the code of a ``forward``
    reads are not seen.

    Args:
        model: the network.
        origin: what it was built from, where that may set such values.
    """
    tensors = [state_digest(each) for each in (model.state_dict(), unsaved(model))]
    trained = sorted(name for name, own in model.named_parameters() if own.requires_grad)
    return digest(*tensors, shown(model), repr(trained), *origin)


def _values(tensor: Tensor) -> memoryview:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data
