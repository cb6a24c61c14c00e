"""Whether a report tells of the networks that a run has now."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from amc.errors import FileError
from amc.reading import read_json
from experiments.run.folder import JUDGED, MADE_OF, NETWORKS, RunFolder

_REPORTED: dict[str, Any] = {
    f"{MADE_OF}?": {...: (str, None)},
    **{f"{name}?": JUDGED for name in NETWORKS},
}
"""What a report must hold to be compared with its run."""
_SAME = 1e-3
"""Difference up to which two divergences are of the same network, on other hardware perhaps."""


def has_current_report(folder: RunFolder) -> bool:
    """Whether there is a report, and it is about the networks of the run today; see ``is_about``."""
    path = folder.report.with_suffix(".json")
    if not path.exists() or not folder.report.with_suffix(".html").exists():
        return False
    try:
        return is_about(read_json(path, _REPORTED, "run stages=[report] again"), folder)
    except FileError:  # which is told when the file is read for its own sake
        return False


def is_about(report: Mapping[str, Any], folder: RunFolder) -> bool:
    """Whether a report is about the networks that a run has now, and has their accuracies.

    What is made anew removes the record of stage ``evaluate``; later weights of the same widths have
    other accuracies there. Reports of old have no digests. A report that was copied alone is taken.

    Args:
        report: ``report.json``; the shape of its networks has been checked.
        folder: of the run.

    Raises:
        FileError: a record, or ``strategy.json``, is damaged.
    """
    if not any(folder.records.glob("*.json")):
        return True
    evaluated, about = folder.recorded("evaluate"), report.get(MADE_OF)
    if evaluated is not None and not _judges_alike(evaluated, report):
        return False
    if about is None:
        return True
    if (evaluated or {}).get(MADE_OF) != about:
        return False
    trained = (folder.recorded("train") or {}).get(MADE_OF)
    dense = trained.get("dense") if isinstance(trained, dict) else None
    return dense in (None, about.get("dense")) and folder.strategy_digest() in (None, about.get("strategy"))


def _judges_alike(evaluated: Mapping[str, Any], report: Mapping[str, Any]) -> bool:
    """Whether a report has the networks that stage ``evaluate`` has judged, with the same results."""
    networks = [name for name in NETWORKS if name in evaluated]
    if networks != [name for name in NETWORKS if name in report]:
        return False
    pairs = [(evaluated[name], report[name]) for name in networks]
    for own, told in pairs:
        if any(own[key] != told[key] for key in ("top1", "lost", "gained") if key in own and key in told):
            return False
        divergences = [each["divergence"] for each in (own, told) if "divergence" in each]
        if len(divergences) == 2 and not math.isclose(*divergences, rel_tol=_SAME, abs_tol=_SAME):
            return False
    return True
