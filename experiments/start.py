"""The entry of the ``amc`` command: Ctrl-C ends it in one line from the first moment on."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn


def main() -> None:
    """Import the command, which takes a second, and run it."""
    before = signal.signal(signal.SIGINT, _end)
    from experiments.main import main as command

    signal.signal(signal.SIGINT, before)
    command()


def _end(_signal: int, _frame: FrameType | None) -> NoReturn:
    os.write(2, b"amc: stopped\n")
    os._exit(130)  # an exception could be swallowed by a module that is being imported


if __name__ == "__main__":
    main()
