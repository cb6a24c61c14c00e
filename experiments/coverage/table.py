"""The Markdown page of the measurements."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report.text import markdown

HEAD = ("network", "px", "groups", "prunable MACs", "smallest MACs", "result", "s", "left whole, and why")
RESULTS = {
    "exact": "exact",
    "in part": "exact in part",
    "refused": "refused",
    "limit": "over the limit",
    "crash": "CRASH",
}
"""Outcome of a measurement -> its name in the table."""

_OUTPUT = "its channels are the network's output"


def table(rows: Sequence[Mapping[str, Any]], about: Sequence[str]) -> str:
    """Return the page: how it was measured, a summary, and a row for each network."""
    lines = ["# Which networks can be pruned", "", *about, "", _summary(rows)]
    for zoo in dict.fromkeys(row["network"].partition(":")[0] for row in rows):
        own = [row for row in rows if row["network"].startswith(f"{zoo}:")]
        lines += ["", f"## {zoo}", "", markdown([HEAD, *map(_cells, own)])]
    return "\n".join(lines) + "\n"


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        counts[row["network"].partition(":")[0]][row["outcome"]] += 1
    zoos = [[zoo, own.total(), *(own[outcome] for outcome in RESULTS)] for zoo, own in counts.items()]
    return markdown([["", "networks", *RESULTS.values()], *zoos])


def _cells(row: Mapping[str, Any]) -> list[Any]:
    name = row["network"].partition(":")[2]
    result = RESULTS[row["outcome"]]
    if row["outcome"] not in ("exact", "in part"):
        return [name, row["size"], "", "", "", result, row["seconds"] or "", row["reason"]]
    reasons = Counter(kind(item["reason"]) for item in row["left_out"] if item["reason"] != _OUTPUT)
    notes = [f"{count} x {reason}" for reason, count in reasons.most_common()]
    if row["other_macs"]:
        notes.append(
            f"{row['other_macs'] / row['macs']:.0%} of the MACs are outside of convolution and linear layers"
        )
    return [
        name,
        row["size"],
        row["groups"],
        f"{row['prunable_share']:.0%}",
        f"{row['minimum_macs_ratio']:.2f}",
        f"{result}, {row['difference']:.0e}",
        row["seconds"],
        "; ".join([*notes, *([row["reason"]] if row["reason"] else [])]),
    ]


def kind(reason: str) -> str:
    """Return a reason without names and sizes, so that equal reasons of different groups can be counted."""
    reason = re.sub(r"^\S+ (is|normalises|has|computes|does|\()", r"\1", reason)
    reason = re.sub(r"a reshape from \S+ to \S+ rearranges", "a reshape rearranges", reason)
    return re.sub(r"called \d+ times", "called several times", re.sub(r" \(groups=\d+\)", "", reason))
