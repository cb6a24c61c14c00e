"""Detectors as networks that can be pruned: from normalised images to what the heads return, before any box.

Decoding boxes and picking some of them depends on the image and gives a different number of rows each time;
nothing there has channels to prune. What the rest of a detector reads (the region heads of Faster R-CNN) is
returned too, and so keeps its width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d


class RawDetector(nn.Module):
    """One of torchvision's detectors up to the raw outputs of its heads.

    Maps images (N, 3, H, W) to a dictionary: the heads' class scores and box offsets for every anchor; where
    proposals are looked at a second time (R-CNN), the feature maps and the proposals' scores and offsets.
    ``detector`` is the whole detector, with the pruned parts in place once this network has been pruned.
    Frozen batch norms become plain ones of the same values, which compute the same in eval mode.

    A checkpoint of the bare detector is loaded by a factory of one's own: ``RawDetector(detector)``.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector: Any = detector
        for name, module in detector.named_modules():
            if isinstance(module, FrozenBatchNorm2d):
                detector.set_submodule(name, _thawed(module))

    def forward(self, images: Tensor) -> dict[str, Any]:
        """Return the heads' outputs for normalised images (N, 3, H, W)."""
        features = self.detector.backbone(images)
        maps = [features] if isinstance(features, Tensor) else list(features.values())
        if not hasattr(self.detector, "rpn"):
            found: dict[str, Any] = self.detector.head(maps)
            return found
        objectness, deltas = self.detector.rpn.head(maps)
        return {"features": maps, "objectness": objectness, "deltas": deltas}


def _thawed(frozen: FrozenBatchNorm2d) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(len(frozen.weight), eps=frozen.eps)
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name).copy_(getattr(frozen, name))
    return norm
