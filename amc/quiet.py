"""Silence for libraries that talk while they convert a network."""

from __future__ import annotations

import contextlib
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
