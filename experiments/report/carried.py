"""What lies beside exported files: a README and a script that runs them without this project."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from pprint import pformat
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from amc.files import atomic_write_text
from experiments.report.answers import kib

NEEDS = {"onnx": "onnxruntime numpy pillow", "litert": "ai-edge-litert numpy pillow"}
"""Format that ``predict.py`` runs -> the packages that it needs."""
_CHANNELS = {"grey": 1, "RGB": 3}
_RUNTIMES = {"onnx": "onnxruntime", "litert": "litert"}
"""Format -> the runtime that ``predict.py`` runs it with."""


def write_carried(
    folder: Path, name: str, about: Mapping[str, str], files: Sequence[Mapping[str, Any]]
) -> list[dict[str, str]]:
    """Write ``README.md`` and, for formats that it can run on pictures, ``predict.py``.

    Args:
        folder: the folder of exported files.
        name: of the network.
        about: what the files hold about their input (``amc.export.metadata.described``).
        files: ``format``, ``file`` and ``bytes`` of each, and of some ``batch`` (images per call, None if
            it is free), ``precision``, and what runtimes compute from it: ``runtimes`` and ``failure``.

    Returns:
        The script's place in the run folder, the packages it needs and the network, for each file it runs.

    Raises:
        FileError: a file cannot be written.
    """
    facts = {key: json.loads(value) for key, value in about.items()}
    listed = [
        {
            "failure": None,
            "precision": "float32",
            "batch": None,
            **own,
            "name": Path(own["file"]).name,
            "size": kib(own["bytes"]),
        }
        for own in files
    ]
    pictures = facts["channels"] in _CHANNELS
    runs = [own for own in listed if pictures and own["format"] in NEEDS and not _fails(own)]
    count = _CHANNELS.get(facts["channels"], len(facts["mean"]))
    parts = {"name": name, "about": facts, "count": count, "files": listed, "runs": runs, "needs": NEEDS}
    if runs:
        shown = pformat(facts, width=100, sort_dicts=False)
        script = _TEMPLATES.get_template("predict.txt").render(**parts, default=runs[0]["name"], shown=shown)
        atomic_write_text(folder / "predict.py", script)
    atomic_write_text(folder / "README.md", _TEMPLATES.get_template("carried.md").render(**parts))
    return [
        {"file": "exports/predict.py", "needs": NEEDS[own["format"]], "network": own["name"]} for own in runs
    ]


def _fails(own: Mapping[str, Any]) -> bool:
    """Whether the runtime of ``predict.py`` does not run a file."""
    failed = {each["runtime"] for each in own.get("runtimes", ()) if each["failure"] is not None}
    return _RUNTIMES[own["format"]] in failed


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=False,  # Markdown and Python, not HTML
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
