"""The result of a compression: the pruned network, its strategy, and a report of plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from amc.cutting.remembered import outputs_as_metadata
from amc.errors import FileError
from amc.loading import STRATEGY, WEIGHTS
from amc.models import ModelSpec
from amc.models.state_files import save_safetensors
from amc.strategy import Strategy


@dataclass(frozen=True)
class Compressed:
    """A pruned network.

    Attributes:
        model: the pruned network, a plain module in eval mode on the CPU, ready for training or export.
        strategy: the number of channels that every group keeps.
        report: plain values: ``budget``, which a reward may not have ``enforced``, and the shares that were
            ``reached``; costs and scores of the ``dense`` network, of the ``candidate`` that the search
            scored, and of the ``pruned`` network; facts about the ``search`` and its ``episodes``;
            ``left_whole``, the groups that keep all channels and the reason; for a latency budget,
            ``latency``.
    """

    model: nn.Module
    strategy: Strategy
    report: Mapping[str, Any] = field(repr=False)

    def save(self, folder: str | Path) -> None:
        """Write ``strategy.json`` and ``model.safetensors``, which ``amc.load_pruned`` reads.

        The metadata of the weights tell what the network computes for two random images: loading refuses one
        that computes something else.

        Args:
            folder: created if it does not exist.

        Raises:
            FileError: the folder or a file cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"{folder}: cannot make the folder: {error.strerror}") from error
        self.strategy.save(folder / STRATEGY)
        spec = ModelSpec.from_json(dict(self.strategy.model))
        told = outputs_as_metadata(self.model, spec.input_shape)
        save_safetensors(self.model.state_dict(), folder / WEIGHTS, told)
