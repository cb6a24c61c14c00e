"""Remarks to the user that are no errors: one line each, once in a process."""

from __future__ import annotations

import functools
import logging

_log = logging.getLogger("amc")


@functools.cache
def note_once(text: str) -> None:
    """Log one line as a warning, unless the same line was logged before."""
    _log.warning("%s", text)
