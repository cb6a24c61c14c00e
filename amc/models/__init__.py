"""Networks: the model zoo, building a network by its name, and weights on disk.

A name is imported at its first use: ``names.py`` needs no torch.

- ``names.py``: all names of networks.
- ``registry.py``: ``ModelSpec`` and ``build``, from a name to a network.
- ``spec.py``: the ``ModelSpec`` of a network for a data set, with what pretrained weights decide.
- ``wrappers.py``: a network out of DataParallel and torch.compile.
- ``cifar_resnet.py``, ``mobilenet.py``, ``vgg.py``: the networks of the zoo.
- ``shortcut.py``: the option-A shortcut of the CIFAR ResNets, and how its channels are cut.
- ``detection.py``: torchvision's detectors up to the raw outputs of their heads.
- ``normalisation.py``: how the libraries' weights expect images to be normalised.
- ``state_files.py``: state dicts on disk, read and written.
- ``tensor_names.py``: the names that wrappers and earlier versions of libraries give to tensors.
- ``checkpoint.py``: the weights of a file in a network, checked.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amc.models.cifar_resnet import (
        CifarResNet,
        plain20,
        resnet20,
        resnet32,
        resnet44,
        resnet56,
        resnet110,
    )
    from amc.models.mobilenet import MobileNetV1, mobilenet_v1, mobilenet_v2
    from amc.models.registry import ModelSpec, build
    from amc.models.shortcut import OptionAShortcut, option_a_source
    from amc.models.vgg import CifarVgg, vgg16_bn

_OFFERED = {
    "cifar_resnet": (
        *("CifarResNet", "plain20", "resnet20", "resnet32", "resnet44", "resnet56"),
        "resnet110",
    ),
    "mobilenet": ("MobileNetV1", "mobilenet_v1", "mobilenet_v2"),
    "registry": ("ModelSpec", "build"),
    "shortcut": ("OptionAShortcut", "option_a_source"),
    "vgg": ("CifarVgg", "vgg16_bn"),
}
_HOME = {name: module for module, names in _OFFERED.items() for name in names}

__all__ = [
    "CifarResNet",
    "CifarVgg",
    "MobileNetV1",
    "ModelSpec",
    "OptionAShortcut",
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


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
