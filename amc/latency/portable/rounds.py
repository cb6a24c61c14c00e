"""Calls timed in interleaved rounds. Standard library only: a remote host runs this file as it is.

Two networks that are timed one after the other meet different neighbours, clock rates and cache pressure.
Here each round times every network, in an order that alternates from round to round.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

_MAX_REPEATS = 1_000_000


def interleaved(
    runs: Mapping[str, Callable[[], Any]],
    rounds: int,
    warmup: int,
    min_round_seconds: float,
    clock: Callable[[], float],
) -> tuple[dict[str, list[float]], int]:
    """Time every callable in each of ``rounds`` rounds, forwards in even rounds and backwards in odd ones.

    Within a round each callable is called the same number of times in a row; that number is calibrated once
    so that the slowest one takes at least ``min_round_seconds``. The garbage collector is off meanwhile.

    Args:
        runs: The callables, by name.
        rounds: Samples per callable.
        warmup: Calls of each callable that are not timed.
        min_round_seconds: Shortest time of the slowest callable in a round, by ``clock``.
        clock: Seconds since any fixed instant.

    Returns:
        Milliseconds per call of each round by name, in order, and the calls per round.
    """
    for run in runs.values():
        _repeat(run, warmup)
    samples: dict[str, list[float]] = {name: [] for name in runs}
    with _no_garbage_collection():
        repeats = _calibrate(list(runs.values()), min_round_seconds, clock)
        for index in range(rounds):
            for name in list(runs)[:: -1 if index % 2 else 1]:
                samples[name].append(_seconds(runs[name], repeats, clock) * 1e3 / repeats)
    return samples, repeats


def _repeat(run: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        run()


def _seconds(run: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> float:
    start = clock()
    _repeat(run, repeats)
    return clock() - start


def _calibrate(runs: Sequence[Callable[[], Any]], min_seconds: float, clock: Callable[[], float]) -> int:
    """Return a number of calls for which the slowest of ``runs`` takes at least ``min_seconds``."""
    repeats = 1
    while repeats < _MAX_REPEATS:
        slowest = max(_seconds(run, repeats, clock) for run in runs)
        if slowest >= min_seconds:
            break
        wanted = math.ceil(1.1 * repeats * min_seconds / slowest) if slowest > 0 else 10 * repeats
        repeats = min(max(wanted, repeats + 1), 10 * repeats)
    return min(repeats, _MAX_REPEATS)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
