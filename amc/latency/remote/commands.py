"""Programs that reach other devices, such as adb and ssh; a failure becomes an error of one line."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO

from amc.errors import AmcError, UnavailableError
from amc.notes import note_once

MAX_BYTES = 64 * 2**20
"""Longest answer that is read."""
LONGEST = 1e9
"""Longest time in seconds that a setting may ask to wait for; clocks of the system take ten times as much."""


def command(arguments: Sequence[str], what: str, *, stdin: bytes | None = b"", timeout: float = 60.0) -> str:
    """Run a program and return its output.

    Args:
        arguments: The program and its arguments, passed on without a shell.
        what: Names the attempt in the error, such as "adb push".
        stdin: Its input; with None it has none, but is left open until the program ends, in whatever way.
        timeout: Seconds after which it is stopped.

    Raises:
        UnavailableError: The program is not on PATH.
        AmcError: It does not end in time, answers far too much, or fails; the message holds the last line of
            its output.
    """
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(list(arguments), stdin=pipe, stdout=pipe, stderr=pipe)
    except FileNotFoundError as error:
        raise UnavailableError(f"{what}: {arguments[0]} is not on PATH") from error
    except (OSError, ValueError) as error:  # no permission, or a zero byte in an argument
        raise AmcError(f"{what}: {arguments[0]} cannot be started: {error}") from error
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = _Reader(process.stdout, process), _Reader(process.stderr, process)
    if stdin is not None:
        threading.Thread(target=_feed, args=(process.stdin, stdin), daemon=True).start()
    try:
        deadline = time.monotonic() + timeout
        for thread in (out, err):
            thread.join(max(deadline - time.monotonic(), 0))
        process.wait(max(deadline - time.monotonic(), 0.1))
        late = out.is_alive() or err.is_alive()
    except subprocess.TimeoutExpired:
        late = True
    finally:
        process.kill()
        process.wait()
        if stdin is None:
            process.stdin.close()
    if out.too_long or err.too_long:
        raise AmcError(f"{what}: the answer has more than {MAX_BYTES / 2**20:.0f} MiB")
    if late:
        raise AmcError(f"{what}: no answer within {timeout:.0f} s")
    printed, complained = out.text(), err.text()
    if process.returncode != 0:
        lines = (complained.strip() or printed.strip() or f"exit status {process.returncode}").splitlines()
        raise AmcError(f"{what}: {lines[-1].strip()[:300]}")
    return printed


@contextmanager
def leftovers_told(what: str) -> Iterator[None]:
    """Make a failure to remove something one line: neither an answer nor the error before it may be lost."""
    try:
        yield
    except AmcError as error:
        note_once(f"{what} is left there: {error}")


class _Reader(threading.Thread):
    """Reads a stream of a process to its end; a process that writes too much is killed."""

    def __init__(self, stream: IO[bytes], process: subprocess.Popen[bytes]) -> None:
        super().__init__(daemon=True)
        self._stream, self._process = stream, process
        self._content = b""
        self.too_long = False
        self.start()

    def run(self) -> None:
        """Read until the end."""
        with suppress(OSError, ValueError), self._stream:
            self._content = self._stream.read(MAX_BYTES)
            if self._stream.read(1):
                self.too_long = True
                self._process.kill()

    def text(self) -> str:
        """Return what was read."""
        return self._content.decode(errors="replace")


def _feed(stream: IO[bytes], content: bytes) -> None:
    with suppress(OSError, ValueError), stream:
        stream.write(content)
