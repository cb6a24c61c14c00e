"""Whether the images are normalised as the weights of the dense network expect them."""

from __future__ import annotations

from torch import nn

from amc.data import Splits
from amc.errors import SettingError
from amc.models.normalisation import Normalisation, detector_normalisation, pretrained_normalisation
from amc.notes import note_once
from experiments.config.schema import Config


def check_normalisation(config: Config, model: nn.Module, splits: Splits) -> None:
    """Refuse images that are normalised otherwise than pretrained weights expect.

    Of a checkpoint of a detector it is only told, as the user may have trained with another normalisation.
    Data sets without ``data.mean`` (digits, random patterns) are for trials, and left.

    Args:
        config: the configuration.
        model: the dense network, as ``build`` returns it.
        splits: the data set.

    Raises:
        SettingError: names the values to write.
    """
    name, pretrained = config.model.name, config.model.pretrained
    if not hasattr(config.data, "mean") or not (pretrained or config.model.checkpoint is not None):
        return
    expected = pretrained_normalisation(model, name) if pretrained else detector_normalisation(model)
    given = Normalisation.of(splits.mean, splits.std)
    if expected is None or given.is_near(expected):
        return
    if not pretrained:
        note_once(
            f"{name} is trained on images with {expected} unless it is told otherwise, and these have "
            f"{given}: write the first, if model.checkpoint={config.model.checkpoint} was trained so"
        )
        return
    where = ", or let the Splits of data.factory have them" if config.data.name == "own" else ""
    raise SettingError(
        f"model.pretrained=true: the weights of {name} expect images with {expected}, got {given}; write the "
        f"first{where}"
    )
