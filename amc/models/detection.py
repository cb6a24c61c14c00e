"""Detectors as networks that can be pruned: from normalised images to the raw outputs of the heads.

Decoding and selecting boxes is left out: it has no channels to prune, and returns a different number of rows
for each image. The inputs of the rest of a detector, such as the region heads of Faster R-CNN, are returned
too, so that they keep their width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from amc.models.wrappers import replace_module


class RawDetector(nn.Module):
    """One of torchvision's detectors up to the raw outputs of its heads.

    Maps images (N, 3, H, W) to a dictionary. One-stage detectors give the class scores and box offsets of
    every anchor; R-CNNs give the feature maps and the scores and offsets of the proposals.

    ``detector`` is the whole detector; after pruning it holds the pruned parts. Frozen batch norms are
    replaced by ordinary ones with the same values, which compute the same in eval mode.

    Checkpoints of the bare detector are loaded, too (``amc.models.tensor_names``).
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector: Any = detector
        for module in [own for own in detector.modules() if isinstance(own, FrozenBatchNorm2d)]:
            replace_module(detector, module, _thawed(module))

    def forward(self, images: Tensor) -> dict[str, Any]:
        """Return the raw outputs of the heads for normalised images (N, 3, H, W)."""
        features = self.detector.backbone(images)
        maps = [features] if isinstance(features, Tensor) else list(features.values())
        if not hasattr(self.detector, "rpn"):
            found: dict[str, Any] = self.detector.head(maps)
            return found
        objectness, deltas = self.detector.rpn.head(maps)
        return {"features": maps, "objectness": objectness, "deltas": deltas}


def _thawed(frozen: FrozenBatchNorm2d) -> nn.BatchNorm2d:
    """Return the batch norm that computes the same with the usual eps.

    Torchvision sets another eps where it loads some weights. No file stores it, so a detector that is built
    again and loaded would compute something else. The weight takes up the difference: the variances of dead
    channels are too small to be changed.
    """
    norm = nn.BatchNorm2d(len(frozen.weight))
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name).copy_(getattr(frozen, name))
        if frozen.eps != norm.eps:
            variance = frozen.running_var.double()
            norm.weight.mul_(((variance + norm.eps) / (variance + frozen.eps)).sqrt())
    return norm
