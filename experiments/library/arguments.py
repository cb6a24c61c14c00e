"""The checks of what a ``CompressionTask`` is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import index
from typing import SupportsFloat, SupportsIndex, TypeVar

import torch
from torch import nn

from amc.errors import SettingError
from amc.result import Evaluation
from amc.scoring.run import copied, device_of
from envs import Reward, get_reward

Settings = TypeVar("Settings")
Score = Callable[[nn.Module], float]
"""A user's own score of a network in eval mode; higher is better."""


def limits_of(**ratios: float | None) -> dict[str, float]:
    """Return the limits that are given, by the kind of the cost.

    Raises:
        SettingError: there is none, or one is no number.
    """
    given = {kind: _share(kind, ratio) for kind, ratio in ratios.items() if ratio is not None}
    if not given:
        names = ", ".join(f"{kind}_ratio" for kind in ratios)
        raise SettingError(f"got no budget; expected at least one of {names}")
    return given


_OF_A_LIMIT = {
    "quantize": ("size", "it says how that limit counts the weights, and quantizes nothing itself"),
    "profile": ("latency", "it says how the latency of that limit is measured"),
    "runtime": ("latency", "it says on what the latency of that limit is measured"),
}
"""Settings -> kind of the limit that alone reads them, and what for."""


def settings_of(name: str, given: object, kind: type[Settings]) -> Settings:
    """Return the settings that are given, or those by default in place of None.

    Raises:
        SettingError: something else is given.
    """
    if given is None:
        return kind()
    if not isinstance(given, kind):
        shown = " ".join(repr(given).split())
        raise SettingError(f"{name} is {shown:.80}; expected amc.{kind.__name__}(...), or None")
    return given


def check_read(limits: Mapping[str, float], **given: object) -> None:
    """Refuse settings of a limit that is not given: they would change nothing.

    Args:
        limits: the limits that are given, by the kind of the cost.
        given: ``quantize``, ``profile`` and ``runtime``; None for what is not given.

    Raises:
        SettingError: there are such settings.
    """
    for name, value in given.items():
        kind, reads = _OF_A_LIMIT[name]
        if value is not None and kind not in limits:
            raise SettingError(f"got {name} without {kind}_ratio: {reads}; give both, or leave {name} out")


def _share(kind: str, ratio: object) -> float:
    if isinstance(ratio, bool) or not isinstance(ratio, SupportsFloat):
        raise SettingError(f"{kind}_ratio is {ratio!r}; expected a number in (0, 1]")
    return float(ratio)


def whole_seed(seed: object) -> int:
    """Return a seed as an int of Python, so that it can be stored; NumPy's are taken.

    Raises:
        SettingError: it is no whole number of 32 bits.
    """
    if not isinstance(seed, SupportsIndex) or isinstance(seed, bool) or not 0 <= index(seed) < 2**32:
        raise SettingError(f"seed is {seed!r}; expected a whole number from 0 to {2**32 - 1}")
    return index(seed)


def whole_number(name: str, number: object) -> int:
    """Return a whole number as an int of Python, as ``whole_seed`` does; its range is checked elsewhere.

    Raises:
        SettingError: it is none.
    """
    if not isinstance(number, SupportsIndex) or isinstance(number, bool):
        raise SettingError(f"{name} is {number!r}; expected a whole number")
    return index(number)


def on_cpu(model: nn.Module) -> nn.Module:
    """Return ``model``, or a copy of one that lies on another device: tracing and cutting are on the CPU.

    One that was made within ``torch.inference_mode()``, whose weights take no gradients, is copied as well.
    """
    fit = device_of(model).type in ("cpu", "meta")
    if fit and not any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        return model
    return copied(model).cpu()


def check_channels(calibration: torch.Tensor, validation: torch.Tensor) -> None:
    """Refuse images of several numbers of channels; sizes may differ, as many networks take any.

    Raises:
        SettingError: the numbers of channels differ.
    """
    if calibration.shape[1] != validation.shape[1]:
        raise SettingError(
            f"calibration has images of {calibration.shape[1]} channels, validation of "
            f"{validation.shape[1]}; expected the same"
        )


def reward_of(
    reward: str | Callable[[Evaluation], float] | None, score: Score | None, labelled: bool
) -> Reward:
    """Return the reward that scores candidates.

    Args:
        reward: its name, or a function of the user's own; None for the default.
        score: a user's own score of a network, in place of a reward.
        labelled: whether the search images have labels, and the network classifies.

    Raises:
        SettingError: both are given, the name is unknown, or the reward needs labels.
    """
    if reward is not None and score is not None:
        raise SettingError("got reward and score; expected one of them: score replaces the reward")
    if score is not None:
        return Reward(getattr(score, "__name__", "score"), lambda evaluation: 0.0)
    if isinstance(reward, Reward):
        found = reward
    elif callable(reward):
        return Reward(getattr(reward, "__name__", "reward"), reward)
    else:
        found = get_reward(reward or ("accuracy" if labelled else "likeness"))
    if found.needs_logits and not labelled:
        raise SettingError(
            f"reward={found.name} needs validation images with labels, and a network that returns logits "
            "(N, classes); reward='likeness' needs neither"
        )
    return found
