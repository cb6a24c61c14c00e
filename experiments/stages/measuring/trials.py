"""Policies of a search, carried out and trained one by one; a killed stage goes on with the next one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amc.digest import digest
from amc.errors import FileError
from amc.files import atomic_write_text
from amc.progress import progress
from amc.reading import read_lines, set_aside
from amc.training.teaching.black_box import onnx_files
from experiments.run.folder import MADE_OF

if TYPE_CHECKING:
    from experiments.run.run import Run

_PLACES = ("processes", "teacher", "teacher_cache", "root", "workers", "download")
"""Settings of trainings and data that tell where something is or who works, and not what comes out."""
Point = dict[str, Any]
"""A policy: its ``widths`` and ``return``."""


def different(episodes: Sequence[dict[str, Any]]) -> list[Point]:
    """Return the different networks within the budget, in the order in which they were judged."""
    found = {
        tuple(episode["widths"]): {"return": episode["return"], "widths": episode["widths"]}
        for episode in episodes
        if episode["phase"] != "relaxed"
    }
    return list(found.values())


def tried(
    run: Run,
    points: Sequence[Point],
    path: Path,
    shape: dict[str, Any],
    judge: Callable[[tuple[int, ...]], dict[str, float]],
    label: str,
) -> list[dict[str, Any]]:
    """Judge policies, and return a row for each: the point and what ``judge`` says of its widths.

    The rows are kept in ``path``, and found there again as long as network, data and the settings of
    pruning and fine-tuning are the same.

    Args:
        run: its ``finetune`` settings are those of ``judge``; rows that are found again are noted there.
        path: a JSON lines file of the run folder.
        shape: of its rows; see ``amc.reading``.
        label: names the stage on the progress bar.
    """
    made_of = _made_of(run)
    rows = known(path, shape, made_of)
    run.looked_up |= any(json.dumps(point["widths"]) in rows for point in points)
    with progress(len(points), label, "policy", stays=True) as bar:
        for point in points:
            key = json.dumps(point["widths"])
            if key not in rows:
                rows[key] = {**point, **judge(tuple(point["widths"])), MADE_OF: made_of}
                atomic_write_text(path, "".join(json.dumps(row) + "\n" for row in rows.values()))
            bar.update()
    # with the return of this search, which may have another reward
    return [{**rows[json.dumps(point["widths"])], **point} for point in points]


def _made_of(run: Run) -> str:
    """Return a digest of all that an accuracy depends on beside the widths."""
    config, data = run.config, run.problem.data_options
    tuned = {name: value for name, value in asdict(config.finetune).items() if name not in _PLACES}
    images = {name: value for name, value in data.items() if name not in _PLACES}
    about = {"prune": asdict(config.prune), "finetune": tuned, "data": images}
    parts = [json.dumps(about, sort_keys=True, default=str), run.problem.fingerprint]
    if (teacher := config.finetune.teacher) is not None:
        given = Path(teacher)
        for path in onnx_files(given) if given.suffix == ".onnx" else [given]:
            with path.open("rb") as file:
                parts.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digest(*parts)


def known(path: Path, shape: dict[str, Any], made_of: str) -> dict[str, dict[str, Any]]:
    """Return the policies that were judged with the same settings; a damaged file is set aside."""
    if not path.exists():
        return {}
    try:
        rows = read_lines(path, shape, "it is made again")
    except FileError as error:
        set_aside(path, error)
        return {}
    return {json.dumps(row["widths"]): row for row in rows if row.get(MADE_OF) == made_of}
