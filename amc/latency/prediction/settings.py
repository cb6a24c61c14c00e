"""How a latency model is measured."""

from __future__ import annotations

from dataclasses import dataclass

from amc.errors import SettingError


@dataclass(frozen=True)
class ProfileSettings:
    """How a latency model is measured.

    Attributes:
        batch: images per call.
        threads: threads the runtime may use.
        points: widths measured on each axis of a layer.
        rounds: samples of each.
        fit: whole networks that the model is fitted to.
        held_out: whole networks that it is judged on.
        repairs: how often a network that measures over its budget is replaced by another.

    Raises:
        SettingError: a value is too small.
    """

    batch: int = 1
    threads: int = 1
    points: int = 4
    rounds: int = 10
    fit: int = 12
    held_out: int = 10
    repairs: int = 5

    def __post_init__(self) -> None:
        for name, least in (
            ("batch", 1),
            ("threads", 1),
            ("points", 2),  # latencies are interpolated between them
            ("rounds", 1),
            ("fit", 1),
            ("held_out", 1),
            ("repairs", 0),
        ):
            if getattr(self, name) < least:
                raise SettingError(f"profile.{name} is {getattr(self, name)}; expected at least {least}")
