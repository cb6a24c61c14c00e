"""Optional packages: which are there, without importing them."""

from __future__ import annotations

import importlib.util


def missing(*packages: str) -> str | None:
    """Return None if all top-level ``packages`` can be imported, else which are not installed."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None
