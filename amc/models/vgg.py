"""VGG-16 with batch norm for CIFAR (Simonyan and Zisserman 2015, arXiv:1409.1556, configuration D).

The head is one linear layer. State-dict keys and convolution biases are those of
github.com/kuangliu/pytorch-cifar.
"""

import torch.nn.functional as F
from torch import Tensor, nn

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class CifarVgg(nn.Module):
    """VGG-16 with batch norm: maps images (N, 3, H, W), H and W at least 32, to logits (N, num_classes)."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = _features()
        self.classifier = nn.Linear(_STAGES[-1][-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) for images (N, 3, H, W)."""
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


def _features() -> nn.Sequential:
    layers: list[nn.Module] = []
    in_channels = 3
    for stage in _STAGES:
        for channels in stage:
            conv = nn.Conv2d(in_channels, channels, 3, padding=1)
            layers += [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
            in_channels = channels
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def vgg16_bn(num_classes: int = 10) -> CifarVgg:
    """Build VGG-16 with batch norm for 32x32 images (14.73 M parameters)."""
    return CifarVgg(num_classes)
