"""Rewards of a finished episode: pure functions of the pruned network's evaluation.

A new reward is one function and one row of ``REWARDS``.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from amc.errors import AmcError, SettingError, brief
from amc.registry import Registry
from amc.result import Evaluation

Score = Callable[[Evaluation], float]


@dataclass(frozen=True)
class Reward:
    """A score and its demands.

    Attributes:
        name: its name in the configuration.
        score: the function; higher is better.
        enforces_budget: False for AMC's accuracy-guaranteed rewards, which trade cost against accuracy
            themselves (section 3.3) and search without a hard limit.
        needs_logits: whether it needs the accuracy, which only a classifier has.
    """

    name: str
    score: Score
    enforces_budget: bool = True
    needs_logits: bool = False

    def __call__(self, evaluation: Evaluation) -> float:
        """Score an evaluation.

        Raises:
            AmcError: the score needs logits and the network returns none, or a user's function fails or
                returns no finite number.
        """
        return number_of(partial(self.score, evaluation), f"reward {self.name!r}")


def number_of(score: Callable[[], object], named: str) -> float:
    """Return what a function returns that may be a user's own.

    Args:
        score: the function, with its arguments.
        named: what it is, such as ``reward 'accuracy'``.

    Raises:
        AmcError: it fails, or returns no finite number.
    """
    try:
        found = score()
    except AmcError as error:
        raise AmcError(f"{named} {' '.join(str(error).split())}") from error
    except Exception as error:  # a user's own function may raise anything
        raise AmcError(f"{named} fails: {brief(error)}") from error
    try:
        value = math.nan if isinstance(found, str) else float(found)  # type: ignore[arg-type]
    except Exception:  # a tensor of several numbers raises a RuntimeError
        value = math.nan
    if not math.isfinite(value):
        raise AmcError(f"{named} returns {' '.join(repr(found).split()):.80}; expected a finite number")
    return value


def _error(evaluation: Evaluation) -> float:
    """Return the share of wrong predictions, in [0, 1]."""
    if evaluation.top1 is None:
        raise AmcError("needs an accuracy, but the network returns no logits; use agreement or likeness")
    return 1.0 - evaluation.top1 / 100.0


def accuracy(evaluation: Evaluation) -> float:
    """Return R_err = -error (AMC section 3.3), in [-1, 0]; 0 is perfect."""
    return -_error(evaluation)


def accuracy_macs(evaluation: Evaluation) -> float:
    """Return R_FLOPs = -error * log(MACs) (AMC eq. 5); 0 is perfect."""
    return -_error(evaluation) * math.log(evaluation.macs)


def accuracy_params(evaluation: Evaluation) -> float:
    """Return R_Param = -error * log(parameters) (AMC eq. 5); 0 is perfect."""
    return -_error(evaluation) * math.log(evaluation.params)


def agreement(evaluation: Evaluation) -> float:
    """Return minus the mean KL divergence from the dense network's predictions, in nats; 0 is perfect.

    For networks without logits (detection, segmentation) this is ``likeness``. Unlike the accuracy it varies
    between candidates even if the dense network has memorised the images.
    """
    return evaluation.agreement


def likeness(evaluation: Evaluation) -> float:
    """Return minus the squared error of the outputs, relative to the dense outputs' variance; 0 is perfect.

    All outputs of all images have the same weight. ``agreement`` depends on the few images on which the dense
    network is unsure, and there are hardly any among its training images.
    """
    return evaluation.likeness


REWARDS: Registry[Reward] = Registry(
    "reward",
    {
        reward.name: reward
        for reward in (
            Reward("accuracy", accuracy, needs_logits=True),
            Reward("accuracy_macs", accuracy_macs, enforces_budget=False, needs_logits=True),
            Reward("accuracy_params", accuracy_params, enforces_budget=False, needs_logits=True),
            Reward("agreement", agreement),
            Reward("likeness", likeness),
        )
    },
)


def get_reward(name: str) -> Reward:
    """Return a reward by its name or by the dotted path of one, or of a function ``Evaluation -> float``.

    Raises:
        SettingError: an unknown name, or a path that does not lead to a function.
    """
    if name in REWARDS:
        return REWARDS[name]
    module, _, function = name.replace(":", ".").rpartition(".")
    if not module:
        return REWARDS.find(name, hint=" or a dotted path")
    try:
        score = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # a user's module raises anything
        raise SettingError(f"reward {name!r} cannot be imported: {brief(error)}") from error
    if isinstance(score, Reward):
        return replace(score, name=name)
    if not callable(score):
        raise SettingError(
            f"reward {name!r} is a {type(score).__name__}; expected a function of an Evaluation"
        )
    return Reward(name, score)
