"""Model zoo and the one place where a model name becomes a network."""

from amc.models.cifar_resnet import CifarResNet, plain20, resnet20, resnet32, resnet44, resnet56, resnet110
from amc.models.mobilenet import MobileNetV1, mobilenet_v1, mobilenet_v2
from amc.models.registry import ModelSpec, available, build
from amc.models.shortcut import OptionAShortcut, option_a_source
from amc.models.vgg import CifarVgg, vgg16_bn

__all__ = [
    "CifarResNet",
    "CifarVgg",
    "MobileNetV1",
    "ModelSpec",
    "OptionAShortcut",
    "available",
    "build",
    "mobilenet_v1",
    "mobilenet_v2",
    "option_a_source",
    "plain20",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "vgg16_bn",
]
