"""Networks: the model zoo, building a network by its name, and weights on disk.

- ``registry.py``: ``ModelSpec`` and ``build``, from a name to a network.
- ``cifar_resnet.py``, ``mobilenet.py``, ``vgg.py``: the networks of the zoo.
- ``shortcut.py``: the option-A shortcut of the CIFAR ResNets, and how its channels are cut.
- ``detection.py``: torchvision's detectors up to the raw outputs of their heads.
- ``checkpoint.py``: reading, checking and writing weights.
"""

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
