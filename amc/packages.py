"""Optional packages: which are there, and how to do without them."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator


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
