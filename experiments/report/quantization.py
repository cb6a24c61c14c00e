"""What a report says about the quantized network: rows of tables, and the points of the chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report.answers import NETWORKS, file_sizes
from experiments.report.plots_quantized import chain_svg, sensitivity_svg
from experiments.report.text import MISSING, decimals

Json = Mapping[str, Any]


def parts(report: Json) -> dict[str, Any]:
    """Return the parts of a page about quantization; all are empty without a quantized network.

    Args:
        report: see ``experiments.report.html.write_html``; optionally with ``quantize``, the facts of that
            stage, and ``export``, whose ``quantized`` tells what runtimes compute.

    Returns:
        ``chain`` and ``parity``, tables with their heads first, and the drawings ``points`` and ``heat``.
    """
    facts = report.get("quantize", {})
    if "quantized" not in report:
        return {"chain": [], "parity": [], "points": "", "heat": ""}
    rows = facts.get("sensitivity", [])
    points = _points(report)
    return {
        "chain": chain_rows(report),
        "parity": parity_rows((report.get("export") or {}).get("quantized")),
        "points": chain_svg(points) if any(point["latency_ms"] for point in points) else "",
        "heat": sensitivity_svg(rows) if rows else "",
    }


def chain_rows(report: Json) -> list[list[str]]:
    """Return dense, pruned, fine-tuned and quantized as a table: accuracy, bytes of the file, latencies."""
    points = _points(report)
    runtimes = list(dict.fromkeys(name for point in points for name in point["latency_ms"]))
    rows = [["", "Top-1, %", "File, KiB", *(f"{name}, ms" for name in runtimes)]]
    for point in points:
        size = decimals(point["bytes"] / 1024 if point["bytes"] else None, 1, missing=MISSING)
        times = [decimals(point["latency_ms"].get(name), 3, missing=MISSING) for name in runtimes]
        rows.append([point["label"], decimals(point["top1"], missing=MISSING), size, *times])
    return rows


def parity_rows(exported: Json | None) -> list[list[str]]:
    """Return what each runtime computes from the quantized files as a table; empty if none has run one."""
    if exported is None:
        return []
    rows = [["Runtime", "Same class, %", "Top-1, %", "Mean difference", "Largest"]]
    for each in (runtime for file in exported["files"] for runtime in file["runtimes"]):
        if each["failure"] is not None:
            rows.append([each["runtime"], each["failure"], MISSING, MISSING, MISSING])
            continue
        size = [f"{each[key]:.1e}" for key in ("mean", "largest")]
        accuracy = decimals(each["top1"], missing=MISSING)
        rows.append([each["runtime"], decimals(each["agreement"], missing=MISSING), accuracy, *size])
    return rows if len(rows) > 1 else []


def sensitivity_rows(found: Sequence[Json]) -> list[list[str]]:
    """Return the relative error of the outputs with each layer alone quantized, as a table."""
    bits = list(found[0]["errors"]) if found else []
    head = ["layer", "weights", *(f"{each} bits" for each in bits)]
    return [
        head,
        *([e["layer"], str(e["weights"]), *(f"{e['errors'][b]:.2e}" for b in bits)] for e in found),
    ]


def _points(report: Json) -> list[dict[str, Any]]:
    """Return the networks of a run in order; one file serves the pruned and the fine-tuned network."""
    sizes = file_sizes(report)
    of_file = {"dense": "dense", "pruned": "pruned", "finetuned": "pruned", "quantized": "quantized"}
    return [
        {
            "label": label,
            "top1": report[key]["top1"],
            "bytes": sizes.get(of_file[key]),
            "latency_ms": report[key].get("latency_ms", {}),
        }
        for key, label in NETWORKS
        if key in report
    ]
