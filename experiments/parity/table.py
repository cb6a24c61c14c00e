"""The Markdown page of the measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from amc.export.quantized import AGREEMENT
from experiments.parity.networks import NETWORKS
from experiments.report.text import markdown

_HEAD = ("format", "runtime", "same class, %", "mean difference", "largest", "KiB", "remark")
_TITLES = {"float32": "float32, beside PyTorch", "static_int8": "static int8, beside the simulation"}


def table(rows: Sequence[Mapping[str, Any]], about: Sequence[str]) -> str:
    """Return the page: how it was measured, and a table for each network and precision."""
    lines = ["# What exported files compute", "", *about]
    for name in dict.fromkeys(row["network"] for row in rows):
        lines += ["", f"## {name}"]
        for precision, title in _TITLES.items():
            own = [row for row in rows if (row["network"], row["precision"]) == (name, precision)]
            if own:
                cells = [_cells(row, NETWORKS.find(name).classifies) for row in own]
                lines += ["", title, "", markdown([_HEAD, *cells])]
    return "\n".join(lines) + "\n"


def _cells(row: Mapping[str, Any], classifies: bool) -> list[str]:
    runtime, size = row.get("runtime", ""), row.get("bytes")
    kib = "" if size is None else f"{size / 1024:.0f}"
    reason = row.get("reason") or row.get("failure")
    if reason or row.get("largest") is None:
        return [row["format"], runtime, "", "", "", kib, reason or row.get("note", "")]
    agreement = f"{row['agreement']:.1f}" if classifies else ""
    remark = f"below {AGREEMENT}" if classifies and row["agreement"] < AGREEMENT else ""
    if classifies and row.get("own") is not None:
        remark += f"; {row['own']:.1f} with the roundings of its kernels"
    differences = [f"{row[key] / row['scale']:.0e}" for key in ("mean", "largest")]
    return [row["format"], runtime, agreement, *differences, kib, remark]
