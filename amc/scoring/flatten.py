"""What a network returns, as one matrix: a row an image, whatever the structure.

A classifier's logits (N, classes) are taken as they are. Of anything else (several heads, maps, dictionaries,
data classes, nested at will) every floating-point tensor is flattened to (N, columns), and all are put side
by side in the order in which the structure holds them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor

from amc.errors import AmcError


def is_logits(output: object) -> bool:
    """Whether a network's output is one tensor (N, classes)."""
    return isinstance(output, Tensor) and output.ndim == 2


def output_tensors(output: object, path: str = "output") -> Iterator[tuple[str, Tensor]]:
    """Yield the floating-point tensors of an output with where they are, such as ``output['boxes'][0]``."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield path, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from output_tensors(value, f"{path}[{key!r}]")
    elif isinstance(output, tuple | list):
        for index, value in enumerate(output):
            yield from output_tensors(value, f"{path}[{index}]")
    elif is_dataclass(output) and not isinstance(output, type):
        for field in fields(output):
            yield from output_tensors(getattr(output, field.name), f"{path}.{field.name}")


def as_matrix(output: object, images: int) -> Tensor:
    """Return an output for so many images as one matrix (images, columns).

    Raises:
        AmcError: it holds no floating-point tensor, or one that has not one row an image, such as boxes after
            decoding.
    """
    if isinstance(output, Tensor) and is_logits(output):
        return output
    parts = []
    for path, tensor in output_tensors(output):
        if tensor.ndim == 0 or len(tensor) != images:
            raise AmcError(
                f"the network returned {path} of shape {tuple(tensor.shape)} for {images} images; expected "
                "one row an image: give the part of the network before decoding or averaging"
            )
        parts.append(tensor.flatten(1))
    if not parts:
        raise AmcError(
            f"the network returned {_described(output)}; expected a floating-point tensor, or a tuple, list, "
            "dictionary or data class that holds some"
        )
    return torch.cat(parts, dim=1)


def _described(output: object) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of {output.dtype}"
    size = f" of {len(output)}" if isinstance(output, tuple | list | dict) else ""
    return f"{type(output).__name__}{size} without any"
