"""One ranking of all channels of a network by torch-pruning's importances: the global pruning of the field.

Source: torch-pruning (Fang et al., DepGraph, CVPR 2023), ``MagnitudeImportance(p=1)`` and
``TaylorImportance``, with its default reduction over a group's layers and its default normalisation by the
group's mean, which makes the scores of different groups comparable.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.data import LabelledImages
from amc.errors import AmcError
from amc.graph.dependencies import build_dependencies
from amc.graph.groups import ChannelGroup, Graph
from amc.graph.layers import blank_image
from amc.importance.gradients import gradient_batches
from amc.scoring.run import as_logits

Importance = Literal["l1", "taylor"]
TAYLOR_IMAGES = 1000
"""Calibration images that the loss's gradient is summed over, at most."""


def global_scores(
    model: nn.Module, graph: Graph, importance: Importance, calibration: LabelledImages
) -> dict[str, tuple[float, ...]]:
    """Score every channel of every group.

    Args:
        calibration: images and labels for ``taylor``; ``l1`` looks at weights alone.

    Returns:
        Group name -> importance of its channels; a channel of several outputs (a flattened map) has their
        mean.

    Raises:
        AmcError: ``taylor`` for a network without logits.
    """
    dependencies = build_dependencies(model, blank_image(model, graph.input_shape))
    import torch_pruning

    modules = dict(dependencies.model.named_modules())
    score: Any
    if importance == "l1":
        score = torch_pruning.importance.MagnitudeImportance(p=1)
    else:
        _accumulate_gradients(dependencies.model, graph, calibration)
        score = torch_pruning.importance.TaylorImportance()
    by_root: dict[str, list[ChannelGroup]] = defaultdict(list)
    for group in graph.groups:
        by_root[group.root].append(group)
    scores = {}
    for root, groups in by_root.items():
        prune_out = dependencies.graph.get_pruner_of_module(modules[root]).prune_out_channels
        for group in groups:  # scored on its own, as groups of one layer can have different readers
            outputs = sorted(c for own in group.root_channels for c in own)
            found = score(dependencies.graph.get_pruning_group(modules[root], prune_out, outputs))
            scores[group.name] = _by_channel(group, outputs, found.detach().double().cpu())
    return {group.name: scores[group.name] for group in graph.groups}


def _by_channel(group: ChannelGroup, outputs: list[int], found: Tensor) -> tuple[float, ...]:
    if len(found) != len(outputs) or not found.isfinite().all():
        raise AmcError(f"torch-pruning gives no usable importance for the channels of {group.name!r}")
    place = {output: index for index, output in enumerate(outputs)}
    return tuple(float(found[[place[c] for c in own]].mean()) for own in group.root_channels)


@torch.enable_grad()
def _accumulate_gradients(model: nn.Module, graph: Graph, calibration: LabelledImages) -> None:
    """Sum the loss's gradient over calibration images into the parameters of torch-pruning's copy."""
    if not graph.classifies:
        raise AmcError(
            "the ranking global_taylor needs the loss of a network that returns logits (N, classes)"
        )
    for chosen in gradient_batches(min(len(calibration), TAYLOR_IMAGES)):
        logits = as_logits(model(calibration.images[chosen].float()))
        F.cross_entropy(logits, calibration.labels[chosen], reduction="sum").backward()
