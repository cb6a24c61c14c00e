"""The entry of the ``amc`` command: Ctrl-C and SIGTERM end it in one line from the first moment on."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn

_WORDS = {signal.SIGINT: b"stopped", signal.SIGTERM: b"terminated"}


def main() -> None:
    """Import the command, which takes a second, and run it."""
    before = {number: signal.signal(number, _end) for number in _WORDS}
    from experiments.main import main as command

    for number, handler in before.items():
        signal.signal(number, handler)
    command()


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    os.write(2, b"amc: " + _WORDS[signal.Signals(number)] + b"\n")
    os._exit(130)  # an exception could be swallowed by a module that is being imported


if __name__ == "__main__":
    main()
