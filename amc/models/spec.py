"""From the name of a model to its description: what the data and the pretrained weights decide about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amc.models.names import TORCHVISION, ZOO, is_code
from amc.models.registry import ModelSpec, default_weights, dense_prediction_names

_WITH_AUX_LOSS = ("deeplabv3_", "fcn_")
"""Begins of the names of torchvision's segmentation networks with an auxiliary head."""
_IMPLIED: dict[str, dict[str, Any]] = {
    "googlenet": {"transform_input": True},
    "inception_v3": {"transform_input": True},
    "vit_h_14": {"image_size": 518},
}
"""Name -> arguments that torchvision sets where it loads its weights."""


def spec_of(
    name: str,
    kwargs: Mapping[str, Any],
    num_classes: int,
    input_shape: tuple[int, int, int],
    *,
    pretrained: bool,
) -> ModelSpec:
    """Return the description of a network for a data set.

    The kwargs of a pretrained network have what torchvision sets where it loads the weights: built again
    without them, the network computes the same.

    Torchvision's detectors and segmentation networks do not have the classes of the images. Their number of
    outputs is ``kwargs["num_classes"]``, else that of the pretrained weights, else that of the data.

    Args:
        name: a name that ``build`` knows.
        kwargs: further keyword arguments of the factory.
        num_classes: number of classes of the data.
        input_shape: (channels, height, width) of one image, in pixels.
        pretrained: whether the weights are downloaded.

    Raises:
        SettingError: an impossible value.
    """
    kwargs = dict(kwargs)
    if is_code(name) or name in ZOO:  # neither needs torchvision, whose import takes a second
        return ModelSpec(name, num_classes, input_shape, tuple(kwargs.items()))
    own = name.removeprefix(TORCHVISION)
    if own in dense_prediction_names():
        found = len(default_weights(own).meta["categories"]) if pretrained else num_classes
        num_classes = kwargs.pop("num_classes", found)
    if pretrained:
        kwargs = {**_implied(own), **kwargs}
    return ModelSpec(name, num_classes, input_shape, tuple(kwargs.items()))


def _implied(name: str) -> dict[str, Any]:
    return {"aux_loss": True} if name.startswith(_WITH_AUX_LOSS) else _IMPLIED.get(name, {})
