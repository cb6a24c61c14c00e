"""CIFAR ResNets of He et al. 2016 (arXiv:1512.03385, section 4.2) with option-A shortcuts.

State-dict keys are those of github.com/akamaster/pytorch_resnet_cifar10, so that its checkpoints load.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from amc.models.shortcut import OptionAShortcut

_WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, with a shortcut unless ``shortcut`` is false (plain network).

    Maps (N, in_channels, H, W) to (N, channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, channels: int, stride: int, *, shortcut: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module | None = None
        if shortcut:
            same = stride == 1 and in_channels == channels
            self.shortcut = nn.Identity() if same else OptionAShortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to a map of shape (N, in_channels, H, W)."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.shortcut is not None:
            out = out + self.shortcut(x)
        return F.relu(out)


class CifarResNet(nn.Module):
    """CIFAR network of depth 6n + 2: three stages of n basic blocks with 16, 32 and 64 channels.

    Maps images (N, 3, H, W) to logits (N, num_classes). ``shortcuts=False`` gives the plain network.

    Raises:
        ValueError: the depth is not 6n + 2.
    """

    def __init__(self, depth: int, num_classes: int = 10, *, shortcuts: bool = True) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if blocks < 1 or rest:
            raise ValueError(f"got depth {depth}, expected 6n + 2 with n >= 1")
        self.conv1 = nn.Conv2d(3, _WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.layer1 = _stage(_WIDTHS[0], _WIDTHS[0], blocks, 1, shortcuts)
        self.layer2 = _stage(_WIDTHS[0], _WIDTHS[1], blocks, 2, shortcuts)
        self.layer3 = _stage(_WIDTHS[1], _WIDTHS[2], blocks, 2, shortcuts)
        self.linear = nn.Linear(_WIDTHS[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) for images (N, 3, H, W)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))


def _stage(in_channels: int, channels: int, blocks: int, stride: int, shortcuts: bool) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride, shortcut=shortcuts)
    rest = (BasicBlock(channels, channels, 1, shortcut=shortcuts) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def resnet20(num_classes: int = 10) -> CifarResNet:
    """Build ResNet-20 (0.27 M parameters)."""
    return CifarResNet(20, num_classes)


def resnet32(num_classes: int = 10) -> CifarResNet:
    """Build ResNet-32 (0.46 M parameters)."""
    return CifarResNet(32, num_classes)


def resnet44(num_classes: int = 10) -> CifarResNet:
    """Build ResNet-44 (0.66 M parameters)."""
    return CifarResNet(44, num_classes)


def resnet56(num_classes: int = 10) -> CifarResNet:
    """Build ResNet-56 (0.85 M parameters)."""
    return CifarResNet(56, num_classes)


def resnet110(num_classes: int = 10) -> CifarResNet:
    """Build ResNet-110 (1.7 M parameters)."""
    return CifarResNet(110, num_classes)


def plain20(num_classes: int = 10) -> CifarResNet:
    """Build the plain 20-layer network: ResNet-20 without shortcuts."""
    return CifarResNet(20, num_classes, shortcuts=False)
