"""How a latency model is measured."""

from __future__ import annotations

from dataclasses import dataclass


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
    """

    batch: int = 1
    threads: int = 1
    points: int = 4
    rounds: int = 10
    fit: int = 12
    held_out: int = 10
    repairs: int = 5
