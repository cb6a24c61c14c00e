"""Everything that a job prints, in the ``amc.log`` of its run folder as well."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO, Any, TextIO, cast

from amc.errors import AmcError

FILE = "amc.log"


class _Copying:
    """A stream whose whole lines are also written to a log; redrawn progress bars are not.

    Args:
        stream: what is printed to.
        log: the open file; lines in it get the time in front.
    """

    def __init__(self, stream: TextIO, log: IO[str]) -> None:
        self._stream, self._log, self._line = stream, log, ""

    def write(self, text: str) -> int:
        written = self._stream.write(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if line.strip() and "\r" not in line:
                note(self._log, line)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def copied(folder: Path) -> Iterator[None]:
    """Copy what is printed to ``amc.log`` for as long as the context lasts; errors are noted there, too."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE).open("a", encoding="utf-8", errors="replace", buffering=1) as log:
        out, err = (cast(TextIO, _Copying(stream, log)) for stream in (sys.stdout, sys.stderr))
        try:
            with redirect_stdout(out), redirect_stderr(err):
                yield
        except (AmcError, KeyboardInterrupt) as error:
            note(log, f"amc: {error}")
            raise
        except Exception:
            log.write(traceback.format_exc())
            raise


def note(log: IO[str], line: str) -> None:
    """Write one line with the time in front."""
    log.write(f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] {line}\n")
