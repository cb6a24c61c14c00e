"""Signals that end a command, kept out of imports."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_ENDING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def held_back() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back during the block, and raise the first of them after it.

    It is for imports: an exception in the middle of PyTorch's may reach C++ code, which then aborts the
    process with a hundred lines.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    got: list[int] = []
    before = {number: signal.signal(number, lambda number, _: got.append(number)) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if got:
            signal.raise_signal(got[0])
