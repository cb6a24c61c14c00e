"""torch-pruning's pruners, as its README uses them, in small steps down to the budget.

Layers whose channels our own graph leaves whole are left whole here as well. Where the cut network does not
run, the residual streams are left whole, too: torch-pruning cannot cut those of CIFAR ResNets, whose
shortcuts have no weights.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from amc.cost.counted import count_macs
from amc.errors import AmcError, NotPrunableError
from amc.graph.torch_pruning_adapter import import_torch_pruning
from amc.scoring.run import copied

if TYPE_CHECKING:
    from experiments.run.run import Run

_STEPS = 200
"""Steps from the whole network to an empty one; those down to the budget are taken."""
_MOST = 0.98
"""Largest share of a group that may be removed: none is removed wholly."""
_BATCH = 128


def magnitude(run: Run, model: nn.Module, ratio: float) -> nn.Module:
    """Prune the filters with the least L2 norms, the same share in every group."""
    return _pruned(run, model, ratio, "GroupMagnitudeImportance", everywhere=False)


def global_magnitude(run: Run, model: nn.Module, ratio: float) -> nn.Module:
    """Prune the filters with the least L2 norms of the whole network."""
    return _pruned(run, model, ratio, "GroupMagnitudeImportance", everywhere=True)


def global_taylor(run: Run, model: nn.Module, ratio: float) -> nn.Module:
    """Prune the filters with the least first-order Taylor terms of the network, on calibration images."""
    return _pruned(run, model, ratio, "GroupTaylorImportance", everywhere=True)


def _pruned(run: Run, model: nn.Module, ratio: float, importance: str, *, everywhere: bool) -> nn.Module:
    groups = run.problem.graph.groups
    # torch-pruning prunes a group only where it may cut every layer of it, also the depthwise ones
    free = {name for group in groups for name in (*group.producers, *group.followers)}
    single = [group for group in groups if len(group.producers) == 1]
    alone = {name for group in single for name in (*group.producers, *group.followers)}
    try:
        return _cut(run, copied(model), ratio, importance, everywhere, free)
    except NotPrunableError as error:
        print(f"torch-pruning: residual streams stay whole: {error}")
    return _cut(run, model, ratio, importance, everywhere, alone)


def _cut(
    run: Run, model: nn.Module, ratio: float, importance: str, everywhere: bool, free: Collection[str]
) -> nn.Module:
    """Prune layers named in ``free`` until at most ``ratio`` of the MACs stay.

    Raises:
        NotPrunableError: the pruned network does not run.
        AmcError: the other layers take more.
    """
    tools, shape = import_torch_pruning(), run.problem.splits.input_shape
    whole = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and name not in free
    ]
    pruner = tools.pruner.BasePruner(
        model,
        torch.zeros(1, *shape),
        importance=getattr(tools.importance, importance)(),
        global_pruning=everywhere,
        iterative_steps=_STEPS,
        pruning_ratio=1.0,
        max_pruning_ratio=_MOST,
        ignored_layers=whole,
    )
    target, before = ratio * count_macs(model, shape), None
    while (macs := count_macs(model, shape)) > target:
        if macs == before and pruner.current_step >= _STEPS:
            raise AmcError(
                f"torch-pruning ends at {macs / 1e6:.2f}M MACs, expected at most {target / 1e6:.2f}M; likely "
                "cause: too many layers stay whole"
            )
        before = macs
        if importance == "GroupTaylorImportance":
            _collect_gradients(run, model)
        pruner.step()
        model.zero_grad(set_to_none=True)
    return model


def _collect_gradients(run: Run, model: nn.Module) -> None:
    """Leave the gradients of the mean loss on the calibration images in the parameters."""
    model.zero_grad(set_to_none=True)
    given = run.problem.chosen.calibration
    for images, labels in zip(given.images.split(_BATCH), given.labels.split(_BATCH), strict=True):
        (F.cross_entropy(model(images), labels, reduction="sum") / len(given.labels)).backward()
