"""Rewards of a finished episode: pure functions of what the pruned network achieves."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass

from amc.errors import AmcError
from amc.registry import Registry
from amc.result import Evaluation

Score = Callable[[Evaluation], float]


@dataclass(frozen=True)
class Reward:
    """A score and whether the budget is enforced under it.

    Attributes:
        name: as written in the configuration.
        score: higher is better.
        enforces_budget: False for AMC's accuracy-guaranteed rewards, which trade cost against accuracy
            themselves (section 3.3) and search without a hard limit.
        needs_logits: whether it is an accuracy, which only a classifier has.
    """

    name: str
    score: Score
    enforces_budget: bool = True
    needs_logits: bool = False

    def __call__(self, evaluation: Evaluation) -> float:
        """Score an evaluation.

        Raises:
            AmcError: a user's function fails or gives no finite number.
        """
        try:
            value = float(self.score(evaluation))
        except Exception as error:  # a user's own function may raise anything
            raise AmcError(f"reward {self.name!r} fails: {type(error).__name__}: {error}") from error
        if not math.isfinite(value):
            raise AmcError(f"reward {self.name!r} gives {value}; expected a finite number")
        return value


def _error(evaluation: Evaluation) -> float:
    if evaluation.top1 is None:
        raise AmcError("this reward needs the accuracy of a network that returns logits (N, classes)")
    return 1.0 - evaluation.top1 / 100.0


def accuracy(evaluation: Evaluation) -> float:
    """R_err = -error (AMC section 3.3); 0 is perfect."""
    return -_error(evaluation)


def accuracy_macs(evaluation: Evaluation) -> float:
    """R_FLOPs = -error * log(MACs) (AMC eq. 5)."""
    return -_error(evaluation) * math.log(evaluation.macs)


def accuracy_params(evaluation: Evaluation) -> float:
    """R_Param = -error * log(parameters) (AMC eq. 5)."""
    return -_error(evaluation) * math.log(evaluation.params)


def agreement(evaluation: Evaluation) -> float:
    """Minus the mean KL divergence from the dense network's predictions, in nats; 0 is perfect.

    For networks without logits (detection, segmentation): minus the relative squared error of the outputs.
    It still tells candidates apart where the dense network has memorised the images.
    """
    return evaluation.agreement


def likeness(evaluation: Evaluation) -> float:
    """Minus the squared error of the outputs, relative to the dense outputs' variance; 0 is perfect.

    It weighs all outputs of all images alike, where ``agreement`` looks at the few images on which the dense
    network is unsure, and those are fewest among images that it was trained on.
    """
    return evaluation.likeness


REWARDS: Registry[Reward] = Registry(
    "reward",
    {
        "accuracy": Reward("accuracy", accuracy, needs_logits=True),
        "accuracy_macs": Reward("accuracy_macs", accuracy_macs, enforces_budget=False, needs_logits=True),
        "accuracy_params": Reward(
            "accuracy_params", accuracy_params, enforces_budget=False, needs_logits=True
        ),
        "agreement": Reward("agreement", agreement),
        "likeness": Reward("likeness", likeness),
    },
)


def get_reward(name: str) -> Reward:
    """Return a reward by its name or by the dotted path of a function ``Evaluation -> float``.

    Raises:
        AmcError: unknown name, or a path that leads to no function.
    """
    if name in REWARDS:
        return REWARDS[name]
    module, _, function = name.replace(":", ".").rpartition(".")
    if not module:
        return REWARDS.find(name, hint=" or a dotted path")
    try:
        score = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise AmcError(f"reward {name!r} cannot be imported: {error}") from error
    if not callable(score):
        raise AmcError(f"reward {name!r} is a {type(score).__name__}; expected a function of an Evaluation")
    return Reward(name, score)
