"""The tables of a report that stand behind its five answers: runtimes, serving, checks, files, durations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.report.answers import interval_of_speedup, is_missed, kib, networks, smaller, timed
from experiments.report.text import MISSING, decimals, duration, number

Json = Mapping[str, Any]
Table = list[list[str]]


def runtimes(report: Json) -> Table:
    """Return the timing of every runtime, as a table with its head; empty if none was timed.

    The quantized network has a row of its own beside a pruned one.
    """
    last = smaller(report)
    both = last == "pruned" and any(len(timed(report, own)) > 1 for own in report.get("latency", ()))
    name = "Smaller, ms" if both else f"{last.capitalize()}, ms"
    rows = [["Runtime", "Batch", "Dense, ms", name, "Speed-up", "95% interval", "Memory"]]
    for own in report.get("latency", ()):
        if own["comparison"] is None:
            rows.append([own["backend"], str(own["batch"]), own["unavailable"] or MISSING, *[MISSING] * 4])
            continue
        for network, found in timed(report, own):
            runtime = f"{own['backend']}, {network}" if both else own["backend"]
            rows.append([runtime, *_timing(own, network, found)])
    if all(row[-1] == MISSING for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    return rows if len(rows) > 1 else []


def _timing(own: Json, network: str, found: Json) -> list[str]:
    """Return the cells of a network on a runtime: batch, times, speed-up with its interval, memory."""
    within = interval_of_speedup(found)
    memory = own.get("peak_memory_bytes") or {}
    return [
        str(own["batch"]),
        number(found["dense"]["median_ms"]),
        number(found["pruned"]["median_ms"]),
        f"{found['speedup']:.2f}×",
        f"{within[0]:.2f} to {within[1]:.2f}" if within else MISSING,
        f"{kib(memory['dense'])} → {kib(memory[network])}"
        if {"dense", network} <= memory.keys()
        else MISSING,
    ]


def serving(report: Json) -> Table:
    """Return what stage ``serve`` has measured."""
    if (found := report.get("serve")) is None:
        return []
    head = [f"{found['rate']:.1f} requests/s on {found['backend']}", "CPU, % of a core", "p50, ms", "p99, ms"]
    return [
        [*head, f"later than {found['deadline_ms']:.2f} ms"],
        *(
            [
                name,
                decimals(100 * own["cpu_utilisation"], 1),
                decimals(own["p50_ms"]),
                decimals(own["p99_ms"]),
                f"{own['missed']} of {own['requests']}",
            ]
            for name, own in found["served"].items()
        ),
    ]


def compared(report: Json) -> Table:
    """Return the strategy beside uniform widths at the same budget, of stage ``compare``."""
    if (found := report.get("compare")) is None:
        return []
    rows = [["Test top-1, %", "MACs", "Pruned", "Fine-tuned"]]
    return rows + [
        [
            name,
            f"{own['macs_ratio']:.1%}" if "macs_ratio" in own else "100.0%",
            decimals(own.get("top1_pruned", own.get("top1")), missing=MISSING),
            decimals(own.get("top1_finetuned"), missing=MISSING),
        ]
        for name, own in found.items()
        if isinstance(own, Mapping)
    ]


def robustness(report: Json) -> Table:
    """Return the accuracies on corrupted test images, of stage ``evaluate``; empty if none was asked for."""
    found = [(label, own["corrupted"]) for label, own in networks(report) if "corrupted" in own]
    if not found:
        return []
    kinds = list(found[0][1])
    rows = [[label, *(decimals(own.get(kind), missing=MISSING) for kind in kinds)] for label, own in found]
    return [["Corrupted images, top-1, %", *kinds], *rows]


def chosen(report: Json) -> Table:
    """Return the networks between which stage ``choose`` decided, as a table with its head."""
    if (found := report.get("choose")) is None:
        return []
    head = ["Best of the search", "Return", f"{found['images']} after {found['epochs']} epochs, %", "Chosen"]
    return [head] + [
        [
            str(place + 1),
            number(own["return"]),
            decimals(own["top1"]),
            "yes" if place == found["chosen"] else "",
        ]
        for place, own in enumerate(found["candidates"])
    ]


def latency_budget(report: Json) -> Table:
    """Return how the latency was predicted, and what was measured in the end (``profile``, ``verify``)."""
    profile, verify = report.get("profile"), report.get("verify")
    rows = [["Latency", ""]]
    if profile is not None:
        target = profile["target"]
        rows.append(["measured on", f"{target['runtime']}, {target['device']}"])
        rows.append(["dense network", f"{number(profile['dense_ms'])} ms"])
    if verify is not None:
        rows.append(["predicted share", f"{verify['predicted_ratio']:.4f}"])
        rows.append(["measured share", f"{verify['measured_ratio']:.4f} after {verify['repairs']} repairs"])
        rows += [["on", device] for device in [verify.get("on", {}).get("device")] if device]
    return rows if len(rows) > 1 else []


def limits(report: Json) -> Table:
    """Return the budget's limits with what was reached."""
    rows = [
        [
            limit["kind"],
            f"{limit['ratio']:.2%}",
            f"{limit['reached']:.4%}, missed" if is_missed(limit) else f"{limit['reached']:.2%}",
        ]
        for limit in report.get("limits", ())
    ]
    return [["Share of the dense network's", "Limit", "Reached"], *rows] if rows else []


def files(report: Json) -> Table:
    """Return the files that were exported, and what each was checked for."""
    export = report.get("export") or {}
    rows = [["File", "Format", "Size", "Largest difference from PyTorch"]]
    for own in export.get("files", ()):
        difference = own.get("max_abs_difference")
        checked = own.get("note", "") if difference is None else f"{difference:.1e}"
        rows.append([own["file"], own["format"], kib(own["bytes"]), checked])
    quantized = export.get("quantized") or {}
    for own in quantized.get("files", ()):
        checked = "see below" if own["runtimes"] else own.get("failure") or own.get("note") or MISSING
        rows.append([own["file"], f"{own['format']}, {quantized['method']}", kib(own["bytes"]), checked])
    return rows if len(rows) > 1 else []


def durations(report: Json) -> Table:
    """Return how long each stage took."""
    found = report.get("stage_seconds", {})
    if not found:
        return []
    rows = [[name, taken(report, name)] for name in found]
    return [["Stage", "Time"], *rows, ["together", taken(report, *found)]]


def taken(report: Json, *stages: str) -> str:
    """Return how long stages took, at least: of one that was taken up again the last command is counted."""
    least = "at least " if set(report.get("resumed", ())) & set(stages) else ""
    return least + duration(sum(report["stage_seconds"][name] for name in stages))
