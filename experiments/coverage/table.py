"""The Markdown table of what was measured."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

HEAD = ("network", "px", "groups", "prunable MACs", "smallest MACs", "result", "s", "left whole, and why")
RESULTS = {
    "exact": "exact",
    "in part": "exact in part",
    "refused": "refused",
    "limit": "over the limit",
    "crash": "CRASH",
}
"""Outcome of a measurement -> what the table calls it."""

_OUTPUT = "its channels are the network's output"


def table(rows: Sequence[Mapping[str, Any]], about: Sequence[str]) -> str:
    """Return the page: what was run, a summary, and a line a network."""
    lines = ["# Which networks can be pruned", "", *about, "", *_summary(rows)]
    for zoo in dict.fromkeys(row["network"].partition(":")[0] for row in rows):
        own = [row for row in rows if row["network"].startswith(f"{zoo}:")]
        lines += [
            "",
            f"## {zoo}",
            "",
            _line(HEAD),
            _line(["---"] * len(HEAD)),
            *(_line(_cells(row)) for row in own),
        ]
    return "\n".join(lines) + "\n"


def _summary(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    zoos = dict.fromkeys(row["network"].partition(":")[0] for row in rows)
    lines = [_line(["", "networks", *RESULTS.values()]), _line(["---"] * (2 + len(RESULTS)))]
    for zoo in zoos:
        own = Counter(row["outcome"] for row in rows if row["network"].startswith(f"{zoo}:"))
        lines.append(_line([zoo, own.total(), *(own[outcome] for outcome in RESULTS)]))
    return lines


def _cells(row: Mapping[str, Any]) -> list[Any]:
    name = row["network"].partition(":")[2]
    result = RESULTS[row["outcome"]]
    if row["outcome"] not in ("exact", "in part"):
        return [name, row["size"], "", "", "", result, row["seconds"] or "", _plain(row["reason"])]
    reasons = Counter(kind(item["reason"]) for item in row["left_out"] if item["reason"] != _OUTPUT)
    told = [f"{count} x {reason}" for reason, count in reasons.most_common()]
    if row["other_macs"]:
        told.append(
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
        _plain("; ".join([*told, *([row["reason"]] if row["reason"] else [])])),
    ]


def kind(reason: str) -> str:
    """Return a reason without the names and sizes that tell one group of a network from another."""
    reason = re.sub(r"^\S+ (is|normalises|has|computes|does|\()", r"\1", reason)
    reason = re.sub(r"a reshape from \S+ to \S+ rearranges", "a reshape rearranges", reason)
    return re.sub(r"called \d+ times", "called several times", re.sub(r" \(groups=\d+\)", "", reason))


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _line(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
