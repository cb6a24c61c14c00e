"""Global pruning: one ranking of the channels of all groups by torch-pruning's importances.

Source: torch-pruning (Fang et al., DepGraph, CVPR 2023), ``MagnitudeImportance(p=1)`` and
``TaylorImportance``, with the default reduction over the layers of a group. The default normalisation by the
mean of the group makes the scores of different groups comparable.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.data import LabelledImages, check_labels
from amc.errors import AmcError, SettingError
from amc.graph.dependencies import build_dependencies
from amc.graph.groups import ChannelGroup, Graph
from amc.graph.layers import noise_image
from amc.importance.gradients import differentiating, gradient_batches, recording
from amc.scoring.run import as_logits

Importance = Literal["l1", "taylor"]
TAYLOR_IMAGES = 1000
"""Largest number of calibration images over which the gradient of the loss is summed."""


def global_scores(
    model: nn.Module, graph: Graph, importance: Importance, calibration: LabelledImages
) -> dict[str, tuple[float, ...]]:
    """Score every channel of every group.

    Args:
        model: the dense network; it is not changed.
        importance: ``l1`` (norm of the weights) or ``taylor`` (weight x gradient of the loss).
        calibration: images (N, C, H, W) and labels (N,) for ``taylor``; ``l1`` does not use them.

    Returns:
        Group name -> importance of each channel. A channel with several outputs of the root layer has their
        mean.

    Raises:
        SettingError: ``taylor`` for a network without logits.
        NotPrunableError: torch-pruning cannot trace the network.
        AmcError: a label has no logit or the network cannot be differentiated for ``taylor``, or
            torch-pruning gives no finite score for some channel.
    """
    names = [layer.name for layer in graph.layers]
    dependencies = build_dependencies(model, noise_image(model, graph.input_shape), names)
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
        for group in groups:  # one by one, as groups of the same layer can have different consumers
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
    """Sum the gradient of the loss over calibration images in the parameters of torch-pruning's copy.

    Parts that run without gradients have one here, as their channels are pruned, too.
    """
    if not graph.classifies:
        raise SettingError(
            "the importance taylor needs a network that returns logits (N, classes), for its loss"
        )
    setting = "the importance taylor"
    cut = {slot.module for group in graph.groups for slot in group.slots}
    layers = [layer.name for layer in graph.layers if layer.name in cut]
    recorded = recording(model, layers, calibration.images[:1], setting)
    for chosen in gradient_batches(min(len(calibration), TAYLOR_IMAGES)):
        labels = calibration.labels[chosen]
        with differentiating(model, setting):
            with recorded():
                logits = as_logits(model(calibration.images[chosen].float()))
            check_labels(labels, logits.shape[1])
            F.cross_entropy(logits, labels, reduction="sum").backward()
