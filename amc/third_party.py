"""Libraries of others: which are installed, how to do without one, and how to keep them silent."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep prints, log lines and warnings of Python and C++ code off the console; errors still propagate.

    C++ code writes to the file descriptors 1 and 2, which point to the null device meanwhile: for the whole
    process, all threads included.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            _null_descriptors(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def _null_descriptors() -> Iterator[None]:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = [(number, os.dup(number)) for number in (1, 2)]
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        for number, _ in kept:
            os.dup2(null, number)
        yield
    finally:
        os.close(null)
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)


def missing(*packages: str) -> str | None:
    """Return None if all top-level ``packages`` can be imported, else which are not installed."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


@contextlib.contextmanager
def without(package: str) -> Iterator[None]:
    """Let ``import package`` fail meanwhile, as where it is not installed; one already imported stays."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # how Python marks a name that must not be imported
    try:
        yield
    finally:
        del sys.modules[package]
