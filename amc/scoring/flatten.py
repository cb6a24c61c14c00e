"""The output of any network as one matrix with one row per image.

Logits (N, classes) are returned unchanged. In any other structure (several heads, feature maps, dictionaries,
data classes, nested to any depth) each floating-point tensor is flattened to (N, columns), and the parts are
concatenated in the order of the structure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor

from amc.errors import NotPrunableError


def is_logits(output: object) -> bool:
    """Return whether a network's output is one tensor (N, classes) of two classes or more.

    One number an image, as of a classifier with a sigmoid, is none: its softmax is always 1.
    """
    return isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] > 1


def output_tensors(output: object, path: str = "output") -> Iterator[tuple[str, Tensor]]:
    """Yield the floating-point tensors of an output, each of its own shape, with their paths.

    A path reads like ``output['boxes'][0]``.
    """
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
    """Return the output of a network for ``images`` images as one matrix (images, columns).

    Raises:
        NotPrunableError: the output holds no floating-point tensor, or a tensor without one row per image,
            such as decoded boxes.
    """
    if isinstance(output, Tensor) and is_logits(output):
        return output
    parts = []
    for path, tensor in output_tensors(output):
        if tensor.ndim == 0 or len(tensor) != images:
            raise NotPrunableError(
                f"the network returned {path} of shape {tuple(tensor.shape)} for {images} images; expected "
                "one row per image: give the part of the network before decoding or averaging"
            )
        parts.append(tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None])
    if not parts:
        raise NotPrunableError(
            f"the network returned {_described(output)}; expected a floating-point tensor, or a tuple, list, "
            "dictionary or data class that holds some"
        )
    return torch.cat(parts, dim=1)


def _described(output: object) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of {output.dtype}"
    size = f" of {len(output)}" if isinstance(output, tuple | list | dict) else ""
    return f"{type(output).__name__}{size} without any"
