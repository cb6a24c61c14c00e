"""Parameters of which ``make test`` takes some and ``make test-all`` all."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import pytest


def slow(*values: Any, **options: Any) -> Any:
    """Return parameters that only ``make test-all`` takes."""
    return pytest.param(*values, marks=pytest.mark.slow, **options)


def slow_but(often: Container[Any], values: Iterable[Any]) -> list[Any]:
    """Return all parameters; those that are not among ``often`` are slow."""
    return [value if value in often else slow(value) for value in values]
