"""The memory format that a network runs in, and whether it writes into its input: one trial forward tells."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from amc.errors import first_line
from amc.notes import note_once
from amc.scoring.flatten import output_tensors
from amc.scoring.run import copied, device_of, in_eval

_TOLERANCE = 1e-2
"""Largest difference between the two memory formats, relative to the largest output: TF32 stays below it."""


def memory_format_of(model: nn.Module, example: Tensor) -> torch.memory_format:
    """Return channels_last, or the contiguous format for a network that does not run in channels_last.

    Some networks rely on the order of their values in memory, for instance by ``x.view(len(x), -1)`` on a
    feature map. In channels_last such a network fails, or returns other values.

    Args:
        model: the network; copies of it are tried in both modes.
        example: a few images (N, C, H, W) in the precision of the network, on any device.
    """
    reason = _obstacle(model, example.to(device_of(model)))
    if reason is None:
        return torch.channels_last
    note_once(f"{type(model).__name__} runs in contiguous memory, not in channels_last: {reason}")
    return torch.contiguous_format


def image_like(shape: tuple[int, ...], count: int = 2) -> Tensor:
    """Return ``count`` random images of ``shape`` (C, H, W) as an example for ``memory_format_of``."""
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(0))


def writes_into_input(model: nn.Module, example: Tensor) -> bool:
    """Return whether the network, in eval mode, changes the images (N, C, H, W) that it is given."""
    network, images = in_eval(copied(model)), example.to(device_of(model)).clone()
    before = images.clone()
    _run(network, images)
    return not torch.equal(before, images)


def _obstacle(model: nn.Module, example: Tensor) -> str | None:
    """Return why ``model`` cannot run in channels_last, or None if it can."""
    network = in_eval(copied(model))
    try:
        expected = _outputs(network, example, torch.contiguous_format)
    except Exception:  # it runs in neither format; whoever runs it next says why
        return None
    try:
        found = _outputs(network, example, torch.channels_last)
    except Exception as error:  # a user's network raises anything
        return first_line(error)
    if not (len(found) == len(expected) and all(map(_close, found, expected))):
        return "it returns other values there"
    return _obstacle_in_training(model, example)


def _obstacle_in_training(model: nn.Module, example: Tensor) -> str | None:
    network = copied(model)
    network.train()
    try:
        _outputs(network, example, torch.channels_last)
    except Exception as error:
        try:
            _outputs(network, example, torch.contiguous_format)
        except Exception:
            return None
        return first_line(error)
    return None


def _outputs(network: Any, example: Tensor, layout: torch.memory_format) -> list[Tensor]:
    """Return the output tensors of ``network``, which is put into the memory format ``layout``."""
    output = _run(network.to(memory_format=layout), example.clone().contiguous(memory_format=layout))
    return [tensor.float() for _, tensor in output_tensors(output)]


@torch.no_grad()
def _run(network: nn.Module, images: Tensor) -> Any:
    """Run ``network`` with the same random numbers at each call; global draws are not affected."""
    with torch.random.fork_rng([images.device] if images.device.type == "cuda" else []):
        torch.manual_seed(0)
        return network.forward(images)  # the hooks of the network itself are not for a trial


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    finite = other[other.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(one, other, rtol=0.0, atol=_TOLERANCE * scale, equal_nan=True)
