"""Who teaches a training: a network, a file, or a user's function, as the configuration says."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from amc.data import Splits
from amc.errors import SettingError, first_line
from amc.graph.layers import noise_image
from amc.graph.trace import trace
from amc.training.settings import TrainSettings
from amc.training.teaching.black_box import FunctionTeacher, teacher_from_file
from amc.training.teaching.hints import hint_places
from amc.training.teaching.protocol import Teacher
from experiments.config.sections.library import TrainConfig

if TYPE_CHECKING:
    from experiments.run.run import Run


@dataclass(frozen=True, eq=False)
class Source:
    """Where a teacher comes from, in a form that other processes can be sent; at most one is given.

    Attributes:
        network: a network.
        file: a file of logits or an ONNX network.
        function: dotted path of a function from images to logits.
        places: modules whose inputs hints compare.
    """

    network: nn.Module | None = None
    file: str | None = None
    function: str | None = None
    places: tuple[str, ...] = ()

    def opened(self, splits: Splits, settings: TrainSettings, seed: int) -> nn.Module | Teacher | None:
        """Return the teacher.

        Raises:
            AmcError: a file or a function cannot teach this training.
        """
        if self.file is not None:
            return teacher_from_file(self.file, splits, seed=seed, mixes=settings.mixes)
        return self.network if self.function is None else _function(self.function)


def source_of(run: Run, config: TrainConfig, settings: TrainSettings, dense: nn.Module | None) -> Source:
    """Return the source of a training's teacher, which is ``dense`` unless ``config`` names another."""
    if not settings.is_taught:
        return Source()
    if config.teacher is not None or config.teacher_function is not None:
        return Source(file=config.teacher, function=config.teacher_function)
    if dense is None or settings.hint_weight == 0:
        return Source(dense)
    graph = trace(dense, noise_image(dense, run.problem.splits.input_shape))
    return Source(dense, places=hint_places(graph))


def _function(name: str) -> FunctionTeacher:
    """Import a user's function, also from the current directory.

    Raises:
        SettingError: it cannot be imported or called.
    """
    module, _, attribute = name.replace(":", ".").rpartition(".")
    if "" not in sys.path:
        sys.path.append("")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # a user's module raises anything
        raise SettingError(f"teacher_function={name} cannot be imported: {first_line(error)}") from error
    if not callable(found):
        raise SettingError(
            f"teacher_function={name} is a {type(found).__name__}, expected a function of images"
        )
    return FunctionTeacher(found, name)
