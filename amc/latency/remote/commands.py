"""Programs that reach other devices, such as adb and ssh; a failure becomes an error of one line."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from amc.errors import AmcError, UnavailableError


def command(arguments: Sequence[str], what: str, *, stdin: bytes = b"", timeout: float = 60.0) -> str:
    """Run a program and return its output.

    Args:
        arguments: The program and its arguments, passed on without a shell.
        what: Names the attempt in the error, such as "adb push".
        stdin: Its input.
        timeout: Seconds after which it is stopped.

    Raises:
        UnavailableError: The program is not on PATH.
        AmcError: It does not end in time, or fails; the message holds the last line of its output.
    """
    try:
        done = subprocess.run(list(arguments), input=stdin, capture_output=True, timeout=timeout, check=False)
    except FileNotFoundError as error:
        raise UnavailableError(f"{what}: {arguments[0]} is not on PATH") from error
    except subprocess.TimeoutExpired as error:
        raise AmcError(f"{what}: no answer within {timeout:.0f} s") from error
    out, err = (stream.decode(errors="replace") for stream in (done.stdout, done.stderr))
    if done.returncode != 0:
        lines = (err.strip() or out.strip() or f"exit status {done.returncode}").splitlines()
        raise AmcError(f"{what}: {lines[-1].strip()}")
    return out
