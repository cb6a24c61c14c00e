"""Third-party libraries: whether one is installed, how to silence one, and workarounds."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib.util
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

FIXED_BATCH = (
    "the network reads the number of images as a plain number: write x.shape[0] or x.size(0) in place of "
    "len(x) or int(x.shape[0])"
)
"""What keeps torch's exporters from graphs that take any number of images."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress prints, log lines and warnings of Python and C++ code; exceptions still propagate.

    C++ code writes to the file descriptors 1 and 2. Both point to the null device during the block, for all
    threads of the process.
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
def without_warnings() -> Iterator[None]:
    """Suppress Python's warnings; the filters are shared by all threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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
    """Return None if all top-level ``packages`` are installed, else a line that names the missing ones."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


@contextlib.contextmanager
def without(package: str) -> Iterator[None]:
    """Make ``import package`` fail during the block, as if the package were not installed.

    This has no effect if the package is imported already.
    """
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # Python's mark of a name that cannot be imported
    try:
        yield
    finally:
        del sys.modules[package]


@contextlib.contextmanager
def onnx_operators_kept() -> Iterator[None]:
    """Let ``torch.onnx.export`` reuse its table of operators; building it takes over half of a small export.

    An export does not change the table. This has no effect with a version of torch that keeps the table
    elsewhere.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        own = vars(ONNXRegistry)["from_torchlib"]
    except (ImportError, KeyError):
        yield
        return
    setattr(ONNXRegistry, "from_torchlib", staticmethod(_cached(ONNXRegistry.from_torchlib)))  # noqa: B010
    try:
        yield
    finally:
        setattr(ONNXRegistry, "from_torchlib", own)  # noqa: B010


@functools.cache
def _cached(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the cached version of ``function``, one for the life of the process."""
    return functools.cache(function)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``."""


def keep_free_memory() -> None:
    """Let this process keep up to 1 GiB of freed heap memory for its next tensors.

    glibc returns large freed blocks to the kernel, and gets them again page by page: for every layer of a new
    worker's first candidates, and for every step of a training.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library than glibc
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the largest value that is allowed
            mallopt(_M_TRIM_THRESHOLD, 2**30)


def return_free_memory() -> None:
    """Return free heap memory to the kernel, so that the resident set holds used memory only."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
