"""The result of a compression: a plain network, the strategy behind it, and facts as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from amc.loading import STRATEGY, WEIGHTS
from amc.models.checkpoint import save_safetensors
from amc.strategy import Strategy


@dataclass(frozen=True)
class Compressed:
    """A pruned network.

    Attributes:
        model: the pruned network, in eval mode on the CPU: a plain module, to be trained, exported or saved.
        strategy: how many channels every group keeps.
        report: facts as plain values: costs and scores of ``dense`` and ``pruned``, the ``search`` and its
            ``episodes``, channel groups that stayed whole and why.
    """

    model: nn.Module
    strategy: Strategy
    report: Mapping[str, Any] = field(repr=False)

    def save(self, folder: str | Path) -> None:
        """Write ``strategy.json`` and ``model.safetensors``, from which ``amc.load_pruned`` rebuilds it.

        Raises:
            FileError: the folder cannot be written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.strategy.save(folder / STRATEGY)
        save_safetensors(self.model.state_dict(), folder / WEIGHTS)
