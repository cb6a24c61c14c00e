"""MobileNet v1 for CIFAR and ImageNet sizes, and MobileNet v2 for CIFAR sizes."""

import torch.nn.functional as F
from torch import Tensor, nn

SMALL_IMAGE_SIDE = 128
"""Shorter side in pixels below which an image gets the CIFAR variant of a network."""

_V1_STEM = 32
_V1_PAIRS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
# (expansion, channels, repeats, stride), as in torchvision, except stride 1 instead of 2 in the second stage
_V2_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV1(nn.Module):
    """MobileNet v1 at width 1.0 (Howard et al. 2017, arXiv:1704.04861, table 1).

    Maps images (N, 3, H, W) to logits (N, num_classes). Each of ``features.{0..26}`` is a convolution, a
    batch norm and a ReLU6. The first stride is 2 (224x224 ends in a 7x7 map), or 1 for ``image_size`` below
    ``SMALL_IMAGE_SIDE`` (32x32 ends in a 2x2 map).
    """

    def __init__(self, num_classes: int = 1000, image_size: int = 224) -> None:
        super().__init__()
        channels = _V1_STEM
        layers = [_conv_bn(3, channels, 3, stride=1 if image_size < SMALL_IMAGE_SIDE else 2)]
        for out_channels, stride in _V1_PAIRS:
            layers.append(_conv_bn(channels, channels, 3, stride=stride, groups=channels))
            layers.append(_conv_bn(channels, out_channels, 1))
            channels = out_channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) for images (N, 3, H, W)."""
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


def _conv_bn(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU6(inplace=True))


def mobilenet_v1(num_classes: int = 1000, image_size: int = 224) -> MobileNetV1:
    """Build MobileNet v1 for images of ``image_size`` pixels (4.23 M parameters with 1000 classes)."""
    return MobileNetV1(num_classes, image_size)


def mobilenet_v2(num_classes: int = 10) -> nn.Module:
    """Build MobileNet v2 (arXiv:1801.04381) for 32x32 images: (N, 3, 32, 32) -> logits (N, num_classes).

    It is torchvision's network with its state-dict keys, but with stride 1 in the first convolution and in
    the second stage, so that the final map is 4x4 (as in github.com/kuangliu/pytorch-cifar).
    """
    from torchvision.models import MobileNetV2

    model = MobileNetV2(num_classes, inverted_residual_setting=[list(stage) for stage in _V2_STAGES])
    model.features[0][0].stride = (1, 1)
    return model
