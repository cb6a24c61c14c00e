"""What a training changes: all weights, norms alone, or adapters of low rank (LoRA), merged at the end."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amc.errors import AmcError, UnavailableError
from amc.scoring.precision import without_tf32
from amc.scoring.run import evaluating
from amc.seeds import mix
from amc.third_party import missing, quiet
from amc.training.averaging import load
from amc.training.settings import TrainSettings

TOLERANCE = 1e-3
"""Largest difference between merged and adapted outputs, relative to the largest output."""


@dataclass(frozen=True, eq=False)
class Adapted:
    """A network as a method trains it.

    Attributes:
        network: what is trained; it maps images to the same outputs.
        merge: puts the trained weights into the original network, and returns the largest difference between
            the outputs of both, relative to the largest output; 0 where they are one network.
    """

    network: nn.Module
    merge: Callable[[], float]


@contextmanager
def adapted(model: nn.Module, settings: TrainSettings, example: Tensor, seed: int) -> Iterator[Adapted]:
    """Prepare a network for ``settings.method``; afterwards its parameters train as before.

    Args:
        example: a few images (N, C, H, W), on which merged weights are checked.
        seed: of the adapters' initial values.

    Raises:
        UnavailableError: LoRA without the package peft.
        AmcError: no layer can have an adapter; from ``merge``: the merged network computes otherwise.
    """
    if settings.method == "lora":
        yield _with_lora(model, settings.lora_rank, example, seed)
        return
    trained = {name: each.requires_grad for name, each in model.named_parameters()}
    if settings.method == "norms":
        classifier = _classifier(model)
        for name, parameter in model.named_parameters():
            small = parameter.ndim <= 1 or any(parameter is own for own in classifier)
            parameter.requires_grad_(small and trained[name])
    try:
        yield Adapted(model, lambda: 0.0)
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])


def _classifier(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of the last layer with weights, in the order of definition."""
    layers = [each for each in model.modules() if isinstance(each, nn.Linear | nn.Conv2d)]
    return list(layers[-1].parameters()) if layers else []


def _with_lora(model: nn.Module, rank: int, example: Tensor, seed: int) -> Adapted:
    """Return a copy of ``model`` with adapters; norms and biases train, too, and all else is frozen."""
    if (reason := missing("peft")) is not None:
        raise UnavailableError(f"method=lora: {reason}; pip install amc-search[lora]")
    names = [
        name
        for name, each in model.named_modules()
        if isinstance(each, nn.Linear) or (isinstance(each, nn.Conv2d) and each.groups == 1)
    ]
    if not names:
        raise AmcError("method=lora: the network has no linear layer and no ordinary convolution to adapt")
    with quiet():
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        targets = "|".join(map(re.escape, names))
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=f"({targets})", lora_dropout=0.0)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mix(seed, "lora"))
            network = inject_adapter_in_model(config, copy.deepcopy(model))
    for parameter in network.parameters():
        if parameter.ndim <= 1:
            parameter.requires_grad_(True)

    def merge() -> float:
        before = _outputs(network, example)
        for module in network.modules():
            if isinstance(module, BaseTunerLayer):
                module.merge()
        state = {
            name.replace(".base_layer", ""): tensor
            for name, tensor in network.state_dict().items()
            if ".lora_" not in name
        }
        load(model.to(before.device), state)
        difference = float(
            (_outputs(model, example) - before).abs().max() / before.abs().max().clamp_min(1e-12)
        )
        if not difference <= TOLERANCE:
            raise AmcError(
                f"method=lora: merging changes outputs by {difference:.2g} of the largest, expected "
                f"at most {TOLERANCE:g}: the training has probably diverged"
            )
        return difference

    return Adapted(network, merge)


@torch.no_grad()
def _outputs(network: nn.Module, images: Tensor) -> Tensor:
    device = next(network.parameters()).device
    with evaluating(network), without_tf32():  # its rounding is nearly as large as the tolerance
        found: Tensor = network(images.to(device, copy=True))
    return found.float()
