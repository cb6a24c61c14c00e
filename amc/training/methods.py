"""What a training changes: all weights, norms alone, or adapters of low rank (LoRA), merged at the end."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amc.errors import AmcError, UnavailableError
from amc.scoring.precision import without_tf32
from amc.scoring.run import copied, evaluating
from amc.seeds import mix
from amc.third_party import missing, quiet
from amc.training.averaging import load
from amc.training.settings import TrainSettings

TOLERANCE = 1e-3
"""Largest difference between merged and adapted outputs, relative to the largest output."""
FILLED = 0.1
"""Standard deviation of the adapters' values on which merging is tried before a training."""
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


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
        kept = {id(own) for own in [*undecayed(model), *_classifier(model, example)]}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name] and id(parameter) in kept)
    try:
        yield Adapted(model, lambda: 0.0)
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])


def undecayed(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that have no weight decay: those of norm layers, biases and other vectors."""
    norms = {id(own) for each in model.modules() if isinstance(each, _NORMS) for own in each.parameters()}
    return [own for own in model.parameters() if own.ndim <= 1 or id(own) in norms]


def _classifier(model: nn.Module, example: Tensor) -> list[nn.Parameter]:
    """Return the parameters of the linear layer or convolution that runs last."""
    ran: list[nn.Module] = []
    hooks = [
        each.register_forward_hook(lambda module, _given, _made: ran.append(module))
        for each in model.modules()
        if isinstance(each, nn.Linear | nn.Conv2d)
    ]
    try:
        _outputs(model, example[:2])
    finally:
        for hook in hooks:
            hook.remove()
    return list(ran[-1].parameters()) if ran else []


def _adaptable(model: nn.Module) -> list[str]:
    """Return the names of the layers that compute what an adapter beside them can follow.

    Left out are subclasses, which compute otherwise; what the adapter's own convolution would leave out
    (dilation, padding modes); weights that several layers share or that are computed; and frozen weights.
    """
    places = [id(each) for _, each in model.named_modules(remove_duplicate=False)]
    owners = [id(own) for _, own in model.named_parameters(remove_duplicate=False)]
    found = []
    for name, each in model.named_modules():
        own = dict(each.named_parameters(recurse=False)).get("weight")
        if own is None or not own.requires_grad or not _is_plain(each):
            continue
        if places.count(id(each)) == 1 and owners.count(id(own)) == 1:
            found.append(name)
    return found


def _is_plain(module: nn.Module) -> bool:
    if type(module) is nn.Conv2d:
        return module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
    return type(module) is nn.Linear


def _with_lora(model: nn.Module, rank: int, example: Tensor, seed: int) -> Adapted:
    """Return a copy of ``model`` with adapters; norms and biases train, too, and all else is frozen.

    Raises:
        UnavailableError: peft is missing.
        AmcError: no layer can have an adapter, or the network uses its weights otherwise than by its layers.
    """
    if (reason := missing("peft")) is not None:
        raise UnavailableError(f"method=lora: {reason}; pip install amc-search[lora]")
    names = _adaptable(model)
    if not names:
        raise AmcError("method=lora: the network has no linear layer and no ordinary convolution to adapt")
    small = {id(own) for own in undecayed(model) if own.requires_grad}
    trained = {name for name, own in model.named_parameters() if id(own) in small}
    with quiet():
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        targets = "|".join(map(re.escape, names))
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=f"({targets})", lora_dropout=0.0)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mix(seed, "lora"))
            network = inject_adapter_in_model(config, copied(model))
    for name, parameter in network.named_parameters():
        if name.replace(".base_layer", "") in trained:
            parameter.requires_grad_(True)

    def merged(adapters: nn.Module, into: nn.Module) -> float:
        before = _outputs(adapters, example)
        for module in adapters.modules():
            if isinstance(module, BaseTunerLayer):
                module.merge()
        state = {
            name.replace(".base_layer", ""): tensor
            for name, tensor in adapters.state_dict().items()
            if ".lora_" not in name
        }
        load(into.to(before.device), state)
        return float((_outputs(into, example) - before).abs().max() / before.abs().max().clamp_min(1e-12))

    difference = merged(_filled(network, seed), copied(model))
    if not difference <= TOLERANCE:  # before anything is trained
        raise AmcError(
            f"method=lora: merging adapters changes outputs by {difference:.2g} of the largest, expected at "
            f"most {TOLERANCE:g}: the network uses the weight of a layer without running the layer; use "
            "method=norms or method=full"
        )

    def merge() -> float:
        difference = merged(network, model)
        if not difference <= TOLERANCE:
            raise AmcError(
                f"method=lora: merging changes outputs by {difference:.2g} of the largest, expected "
                f"at most {TOLERANCE:g}: the training has probably diverged"
            )
        return difference

    return Adapted(network, merge)


@torch.no_grad()
def _filled(network: nn.Module, seed: int) -> nn.Module:
    """Return a copy whose adapters change the network: a new adapter's second matrix is zero."""
    found = copied(network)
    generator = torch.Generator().manual_seed(mix(seed, "filled"))
    for name, parameter in found.named_parameters():
        if ".lora_B." in name:
            parameter.copy_(FILLED * torch.randn(parameter.shape, generator=generator))
    return found


@torch.no_grad()
def _outputs(network: nn.Module, images: Tensor) -> Tensor:
    device = next(network.parameters()).device
    with evaluating(network), without_tf32():  # its rounding is nearly as large as the tolerance
        found: Tensor = network(images.to(device, copy=True))
    return found.float()
