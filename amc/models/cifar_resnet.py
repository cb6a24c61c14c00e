"""CIFAR ResNets of He et al. 2016 (arXiv:1512.03385, section 4.2) with option-A shortcuts.

State-dict keys are those of github.com/akamaster/pytorch_resnet_cifar10, so its checkpoints load as they are.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WIDTHS = (16, 32, 64)


def option_a_source(in_channels: int, out_channels: int) -> Tensor:
    """Channel map of the dense option-A shortcut.

    Returns a long tensor of shape (out_channels,): the index of the input channel that each output channel
    copies, -1 for a zero channel. Zero channels lie on both sides, as in akamaster's `F.pad`.
    """
    index = torch.arange(out_channels) - (out_channels - in_channels) // 2
    return torch.where((index >= 0) & (index < in_channels), index, -1)


class OptionAShortcut(nn.Module):
    """Parameter-free shortcut: subsample space, copy channels, fill the other channels with zeros.

    Maps (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)). It has neither a
    slice nor a pad, which graph-based pruners cannot follow; after pruning only `source` and the two channel
    counts have to be set anew.
    """

    source: Tensor

    def __init__(self, in_channels: int, out_channels: int, stride: int = 2) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride
        self.register_buffer("source", option_a_source(in_channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the shortcut to a map of shape (N, in_channels, H, W)."""
        if self.stride != 1:
            x = F.avg_pool2d(x, 1, self.stride)
        present = self.source >= 0
        indices = self.source * present  # a clamp of integers is one of floats in Core ML
        return x.index_select(1, indices) * present.to(x.dtype).view(1, -1, 1, 1)

    def extra_repr(self) -> str:
        """Show the channel counts and the stride in `print(model)`."""
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}"

    def _is_dense(self) -> bool:
        dense = option_a_source(self.in_channels, self.out_channels).to(self.source.device)
        return torch.equal(self.source, dense)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Accept checkpoints without `source` while dense, refuse indices that are not input channels."""
        key = f"{prefix}source"
        if key not in state_dict and self._is_dense():
            state_dict = {**state_dict, key: self.source}
        source = state_dict.get(key)
        if (
            source is not None
            and source.numel()
            and not -1 <= source.min() <= source.max() < self.in_channels
        ):
            error_msgs.append(
                f"{key} holds {source.min()} to {source.max()}, expected -1 to {self.in_channels - 1}"
            )
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, with a shortcut unless `shortcut` is false (plain network).

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

    Maps images (N, 3, H, W) to logits (N, num_classes). `shortcuts=False` gives the plain network.
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
