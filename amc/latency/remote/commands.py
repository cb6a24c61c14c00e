"""Programs that reach other devices, run so that whatever goes wrong is told in one line."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from amc.errors import AmcError


def command(arguments: Sequence[str], what: str, *, stdin: bytes = b"", timeout: float = 60.0) -> str:
    """Run a program and return what it printed.

    Args:
        arguments: The program and its arguments; no shell reads them here.
        what: Names the attempt in the error, such as "adb push".
        stdin: What it reads.
        timeout: Seconds after which it is given up.

    Raises:
        AmcError: It is not there, does not end in time, or fails; says the last line that it printed.
    """
    try:
        done = subprocess.run(list(arguments), input=stdin, capture_output=True, timeout=timeout, check=False)
    except FileNotFoundError as error:
        raise AmcError(f"{what}: {arguments[0]} is not on PATH") from error
    except subprocess.TimeoutExpired as error:
        raise AmcError(f"{what}: no answer within {timeout:.0f} s") from error
    out, err = (stream.decode(errors="replace") for stream in (done.stdout, done.stderr))
    if done.returncode != 0:
        lines = (err.strip() or out.strip() or f"exit status {done.returncode}").splitlines()
        raise AmcError(f"{what}: {lines[-1].strip()}")
    return out
