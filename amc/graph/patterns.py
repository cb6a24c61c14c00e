"""Patterns that name layers and channel groups in settings."""

from __future__ import annotations

from fnmatch import fnmatchcase


def matches(name: str, pattern: str) -> bool:
    """Return whether a name fits a pattern of ``*``, ``?`` and ``[12]``; brackets also mean themselves."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, pattern.replace("[", "[[]"))
