"""What a run folder holds, in a form that is compared between two runs of the same job."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

_LOG = "amc.log"


def names(folder: Path) -> frozenset[str]:
    """Return the names of all files in a folder, relative to it."""
    return frozenset(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def facts(folder: Path) -> dict[str, Any]:
    """Return place -> value: the values of JSON files except times, the digests of all other files."""
    found: dict[str, Any] = {}
    for name in sorted(names(folder) - {_LOG}):
        content = (folder / name).read_bytes()
        if name.endswith(".jsonl"):
            for number, line in enumerate(content.splitlines(), start=1):
                found.update(_leaves(json.loads(line), f"{name} line {number}"))
        elif name.endswith(".json"):
            found.update(_leaves(json.loads(content), name))
        else:
            found[name] = sha256(content).hexdigest()
    return found


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield (place, value) for each value that is neither an object nor a list; times are left out."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if "seconds" not in key and not key.endswith("_ms") and key not in ("date", "resumed"):
                yield from _leaves(inner, f"{place}: {key}")
    elif isinstance(value, list):
        yield f"{place}: length", len(value)
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{place}: {index}")
    else:
        yield place, value
