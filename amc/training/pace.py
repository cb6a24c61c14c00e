"""How long a training takes: an estimate from its first steps, and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable

FIRST, LAST = 2, 5
"""Steps between which the estimate is measured; the first ones warm up caches."""


class Pace:
    """Measures the steps and the epochs of one training in this process.

    Args:
        steps: number of steps of an epoch.
        epochs: number of epochs to come.
        on_estimate: called once, after ``LAST`` steps, with the expected seconds of all epochs to come,
            without the validation.
        asking: number of the epochs to come, the first ones, in which a teacher is asked whose logits are
            kept.
        asked: returns the seconds that this teacher has taken so far.
    """

    def __init__(
        self,
        steps: int,
        epochs: int,
        on_estimate: Callable[[float], None] | None,
        *,
        asking: int = 0,
        asked: Callable[[], float] = float,
    ) -> None:
        self._steps, self._epochs, self._on_estimate = steps, epochs, on_estimate
        self._asking, self._asked = asking, asked
        self._done, self._started, self._asked_before, self._epochs_done = 0, 0.0, 0.0, 0
        self._seconds = 0.0

    def step(self) -> None:
        """Note that a step has ended."""
        self._done += 1
        if self._done == FIRST:
            self._started, self._asked_before = time.perf_counter(), self._asked()
        elif self._done == LAST and self._on_estimate is not None:
            taught = (self._asked() - self._asked_before) / (LAST - FIRST)
            own = (time.perf_counter() - self._started) / (LAST - FIRST) - taught
            self._on_estimate(self._steps * (own * self._epochs + taught * self._asking))

    def epoch(self, seconds: float) -> float:
        """Note that an epoch has ended, and return the expected seconds of those to come."""
        self._epochs_done += 1
        self._seconds += seconds
        taught = self._asked()
        own = (self._seconds - taught) / self._epochs_done * (self._epochs - self._epochs_done)
        asking = max(0, self._asking - self._epochs_done)
        return own + taught / self._epochs_done * asking


def spoken(seconds: float) -> str:
    """Return a duration in words, such as ``"1 h 5 min"``, ``"12 min"`` or ``"40 s"``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours else f"{minutes} min"
