"""Checks of settings, written next to the fields: ``tau: float = field(default=0.01, metadata=SHARE)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

Check = Mapping[str, Any]
"""Metadata of a dataclass field: a predicate and the words for what it accepts."""


def check(accepts: Callable[[Any], bool], expected: str) -> Check:
    """Return the metadata of a field whose values ``accepts`` must accept."""
    return {"accepts": accepts, "expected": expected}


def at_least(bound: int) -> Check:
    """Return the check of a number with a lower bound."""
    return check(lambda value: value >= bound, f"at least {bound}")


POSITIVE = check(lambda value: value > 0, "a positive number")
SHARE = check(lambda value: 0 < value <= 1, "a share in (0, 1]")
UNIT = check(lambda value: 0 <= value <= 1, "a number from 0 to 1")
WIDTHS = check(lambda value: all(width >= 1 for width in value), "widths of at least 1")


def validate(settings: Any, section: str = "agent") -> None:
    """Refuse a dataclass with a value that the check of its field does not accept.

    Raises:
        ValueError: names the setting, its value and what is expected.
    """
    for setting in fields(settings):
        value = getattr(settings, setting.name)
        if "accepts" in setting.metadata and not setting.metadata["accepts"](value):
            raise ValueError(f"{section}.{setting.name} is {value}; expected {setting.metadata['expected']}")
