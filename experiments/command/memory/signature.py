"""Signatures of what this user's commands remember, so that another's run folder is known as such.

The key lies in the user's own configuration folder, readable by nobody else, and is made at its first use.
Without a home folder, or where the key could be read by others, nothing is signed and no signature holds.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

_BYTES = 32


def sign(content: Any) -> str | None:
    """Return this user's signature of JSON content, or None if there can be no key."""
    key = _key(make=True)
    return None if key is None else _signature(key, content)


def is_signed(content: Any, signature: object) -> bool:
    """Whether ``signature`` is this user's own signature of JSON content."""
    key = _key(make=False)
    if key is None or not isinstance(signature, str):
        return False
    return hmac.compare_digest(_signature(key, content).encode(), signature.encode())


def _signature(key: bytes, content: Any) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=True)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _key(*, make: bool) -> bytes | None:
    """Return the user's key, or None if there is none or others could know it."""
    place = _folder()
    if place is None:
        return None
    path = place / "signing.key"
    try:
        if make and not path.exists():
            _make(path)
        return _read(path)
    except OSError:
        return None


def _folder() -> Path | None:
    if given := os.environ.get("XDG_CONFIG_HOME"):
        return Path(given) / "amc-search"
    home = os.environ.get("HOME")
    return Path(home) / ".config" / "amc-search" if home else None


def _make(path: Path) -> None:
    """Make a key; of two processes that make one at once, both use the first."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(16)}.tmp")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_BYTES))
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()


def _read(path: Path) -> bytes | None:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(file.fileno())
        if facts.st_uid != getattr(os, "getuid", lambda: facts.st_uid)() or facts.st_mode & 0o077:
            return None
        key = file.read(_BYTES + 1)
    return key if len(key) == _BYTES else None
