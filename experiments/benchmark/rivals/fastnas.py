"""NVIDIA ModelOpt's FastNAS: every layer alone is tried at every width, then a threshold is searched.

``pip install nvidia-modelopt requests huggingface_hub torchprofile==0.0.4`` brings it; it is no dependency.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from amc.scoring.run import logits
from amc.scoring.scores import top1

if TYPE_CHECKING:
    from experiments.run.run import Run

_DIVISOR = 4
"""Widths are multiples of it; ModelOpt's default, 32, leaves narrow networks no choice."""
_BATCH = 250


def fastnas(run: Run, model: nn.Module, ratio: float) -> nn.Module:
    """Prune by the accuracy on search_val; batch norms are calibrated anew on the calibration images.

    Raises:
        ImportError: it is not installed.
    """
    from modelopt.torch import prune
    from modelopt.torch.prune.fastnas import FastNASConfig

    config = FastNASConfig()
    for kind, key in (("nn.Conv2d", "channel_divisor"), ("nn.BatchNorm2d", "feature_divisor")):
        config[kind]["*"][key] = _DIVISOR
    judged, given = run.problem.chosen.search_val, run.problem.chosen.calibration
    found, _ = prune.prune(
        model=model,
        mode=[("fastnas", config)],
        constraints={"flops": f"{100 * ratio:g}%"},
        dummy_input=torch.zeros(1, *run.problem.splits.input_shape),
        config={
            "data_loader": DataLoader(TensorDataset(given.images), batch_size=_BATCH),
            "collect_func": lambda batch: batch[0],
            "score_func": lambda network: top1(logits(network, judged.images, _BATCH), judged.labels),
        },
    )
    assert isinstance(found, nn.Module)
    return found
