"""Teach by the mean logits of several trained networks.

``finetune.teacher_function=experiments.examples.ensemble_teacher.teach`` names it; the environment variable
``TEACHERS=resnet56=a.th,resnet44=b.th`` gives names, as ``model`` takes them, and checkpoints. Kept logits
and checkpoints know a function by its name alone: give each set of networks its own run folder and its own
``finetune.teacher_cache``.
"""

from __future__ import annotations

import functools
import os

import torch
from torch import Tensor, nn

from amc.errors import SettingError
from amc.models.checkpoint import load_into
from amc.models.registry import ModelSpec, build
from amc.models.state_files import load_state_dict
from amc.scoring.precision import computes_bf16

CLASSES = 10


def teach(images: Tensor) -> Tensor:
    """Return the mean logits (N, classes) for normalised images (N, C, H, W).

    The networks compute in bfloat16 where the device has its arithmetic.

    Raises:
        AmcError: ``TEACHERS`` names no networks, or a checkpoint does not fit.
    """
    networks = _networks(os.environ.get("TEACHERS", ""), tuple(images.shape[1:]), images.device)
    given = images.contiguous(memory_format=torch.channels_last)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=computes_bf16(images.device)):
        return torch.stack([network(given).float() for network in networks]).mean(0)


@functools.cache
def _networks(names: str, shape: tuple[int, int, int], device: torch.device) -> list[nn.Module]:
    """Return the networks of ``TEACHERS``, in evaluation mode."""
    pairs = [pair.partition("=") for pair in names.split(",")]
    if not all(name and path for name, _, path in pairs):
        raise SettingError(f"TEACHERS={names}: expected NAME=CHECKPOINT,NAME=CHECKPOINT")
    return [_network(name, path, shape, device) for name, _, path in pairs]


def _network(name: str, path: str, shape: tuple[int, int, int], device: torch.device) -> nn.Module:
    network = build(ModelSpec(name, CLASSES, shape), trust_dotted_path=True)
    load_into(network, load_state_dict(path), path)
    return network.to(device).to(memory_format=torch.channels_last).eval()
