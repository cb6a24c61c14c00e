"""The one way to tell of progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

SECONDS = 30.0
"""Between two lines in a file or a pipe."""


class _Lines(tqdm):
    """A bar that prints a line from time to time, for standard error that is no terminal.

    The time left follows from the pace between the last lines: results that are looked up come much faster
    than those to come. The first step, which may load and compile, does not count.
    """

    monitor_interval = 0  # no thread that redraws

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._told = time.monotonic()
        self._last: tuple[float, float] | None = None  # steps done and time, first after the first step
        self._pace: float | None = None  # seconds a step
        self._closed = bool(kwargs.get("disable"))
        super().__init__(*args, **kwargs)

    def update(self, n: float | None = 1) -> bool | None:
        """Note that ``n`` more steps are done; see tqdm."""
        if self._last is None:
            self._last = (self.n + (n or 0), time.monotonic())
        return super().update(n)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Print a line, unless the last one is not ``SECONDS`` old."""
        if time.monotonic() - self._told >= SECONDS:
            self._told = time.monotonic()
            self._note_pace()
            print(self.line(), file=sys.stderr, flush=True)

    def _note_pace(self) -> None:
        """Take the pace since the last line in: the older ones count half as much with each."""
        if self._last is None or self.n <= self._last[0]:
            return
        steps, since = self._last
        self._last = (self.n, time.monotonic())
        pace = (self._last[1] - since) / (self.n - steps)
        self._pace = pace if self._pace is None else (self._pace + pace) / 2

    def line(self) -> str:
        """Return how far the work is, the time it took, the time left, and what else is told."""
        done = self.format_dict
        whole = "" if self.total is None else f" of {self.total}"
        parts = [f"{self.unit} {self.n}{whole}", f"{tqdm.format_interval(done['elapsed'])} so far"]
        if self.total is not None and self._pace is not None:
            parts.append(f"about {tqdm.format_interval(self._pace * (self.total - self.n))} left")
        return f"{self.desc.rstrip(': ')}: {', '.join([*parts, *([self.postfix] if self.postfix else [])])}"

    def clear(self, nolock: bool = False) -> None:
        """Leave what is printed."""

    def close(self) -> None:
        """End without a last line."""
        if not self._closed:
            self._closed = self.disable = True
            self._decr_instances(self)


def progress(
    total: int | None,
    description: str,
    unit: str,
    *,
    initial: int = 0,
    delay: float = 0.0,
    stays: bool = False,
    shown: bool = True,
) -> tqdm:
    """Return what tells of progress on standard error: a bar on a terminal, else a line every ``SECONDS``.

    Args:
        total: number of steps; None if unknown.
        description: the work in one or two words, such as ``"training"``.
        unit: the name of one step, such as ``"batch"``.
        initial: steps that are already done.
        delay: seconds before the bar appears.
        stays: whether the bar stays on the terminal when it is closed.
        shown: whether anything is told at all.
    """
    kind = tqdm if sys.stderr.isatty() else _Lines
    return kind(
        total=total,
        desc=description,
        unit=unit,
        initial=initial,
        delay=delay,
        leave=stays,
        mininterval=0.1 if kind is tqdm else 1.0,
        miniters=None if kind is tqdm else 1,  # else slow steps after fast ones are not told
        disable=not shown,
    )
