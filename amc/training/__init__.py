"""Training from scratch and fine-tuning, with a resume that gives the same weights bit for bit.

- ``settings.py``: ``TrainSettings``, the learning-rate schedule and ``EpochRecord``.
- ``loop.py``: ``train``, the loop itself.
- ``resume.py``: the checkpoint of an interrupted training.
"""

from amc.training.loop import distillation_loss, parameter_groups, train
from amc.training.settings import EpochRecord, TrainSettings, learning_rate

__all__ = [
    "EpochRecord",
    "TrainSettings",
    "distillation_loss",
    "learning_rate",
    "parameter_groups",
    "train",
]
