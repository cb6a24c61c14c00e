"""What a proof runs on: a copy with random weights (no layer is silent), and random subsets of channels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from amc.cutting.slicing import Kept
from amc.errors import NotPrunableError, brief, out_of_memory
from amc.graph.groups import Graph
from amc.scoring.run import cast, copied, in_eval


def lively_copy(model: nn.Module, images: Tensor, generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    """Return a copy in eval mode with random weights, whose batch norms have seen ``images``, and the images.

    Both are in float64; in float32 if the network runs in no other type.

    Raises:
        NotPrunableError: the network runs in neither.
    """
    try:
        return _lively(model, images, generator), images
    except Exception as error:  # a user's network may raise anything
        if out_of_memory(error):
            raise
        images = images.float()
    try:
        return _lively(model, images, generator), images
    except Exception as error:
        if out_of_memory(error):
            raise
        raise NotPrunableError(f"{type(model).__name__} fails on random images: {brief(error)}") from error


def _lively(model: nn.Module, images: Tensor, generator: torch.Generator) -> nn.Module:
    twin = in_eval(cast(copied(model).cpu().to(memory_format=torch.contiguous_format), images.dtype))
    for name, parameter in twin.named_parameters():
        if not parameter.is_floating_point():
            continue  # numbers that count or point at something
        # One number a channel, or one for all: a scale or an offset.
        if parameter.ndim == 0 or parameter.numel() == len(parameter):
            parameter.uniform_(0.5, 1.5, generator=generator)
            parameter.sub_(1.0 if name.endswith("bias") else 0.0)
        else:
            parameter.normal_(std=(2 / parameter[0].numel()) ** 0.5, generator=generator)
    norms = [module for module in twin.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    twin(images.clone())
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
    return twin


def random_subsets(graph: Graph, generator: torch.Generator) -> dict[str, Tensor]:
    """Return the channels that stay of each group, by its name: at least half, at random."""
    kept = {}
    for group in graph.groups:
        # At least half stays, as a signal that has died out would make every network equal, and one goes.
        half = (group.width + 1) // 2
        width = int(torch.randint(half, max(group.width, half + 1), (1,), generator=generator))
        kept[group.name] = torch.randperm(group.width, generator=generator)[:width].sort().values
    return kept


def without_halves(graph: Graph, kept: Kept) -> Iterator[dict[str, Tensor]]:
    """Yield subsets without every other channel of ``kept``: with it, each channel is removed at least once.

    A forward pass may read one channel by its number, which only shows where that channel goes.
    """
    for start in (0, 1):
        subset = {}
        for group in graph.groups:
            stays = torch.ones(group.width, dtype=torch.bool)
            stays[kept[group.name][start::2]] = False
            subset[group.name] = (stays if stays.any() else ~stays).nonzero().flatten()
        yield subset
