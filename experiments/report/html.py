"""Reports as single HTML files: no scripts, no external resources, light and dark.

The pages are the templates beside this module. Every value is escaped; only the plots, which are made here,
enter a page as they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from amc.files import atomic_write_text
from experiments.report import quantization
from experiments.report.plots import (
    densities_svg,
    fronts_svg,
    learning_svg,
    scatter_svg,
    search_svg,
    trust_svg,
    widths_svg,
)
from experiments.report.text import MISSING, correlation_rows, decimals, millions, number

Json = Mapping[str, Any]

_STAGES = (("dense", "Dense"), ("pruned", "Pruned"), ("finetuned", "Fine-tuned"), ("quantized", "Quantized"))
_COSTS = ("macs", "params")


def write_html(
    path: str | os.PathLike[str],
    report: Json,
    episodes: Sequence[Json],
    strategy: Json,
    fronts: Json | None = None,
) -> None:
    """Write the report of one search as one file, whole or not at all; the same input gives the same bytes.

    A part that is absent or empty leaves its section out. A network without accuracy has ``top1`` None
    everywhere; the plots then show the likeness.

    Args:
        path: The file to write.
        report: ``dense``, ``pruned`` and optionally ``finetuned``, each with ``top1`` (percent), ``macs``,
            ``params`` (counts) and optionally ``latency_ms`` (milliseconds by runtime); and optionally
            ``macs_ratio``, ``limits`` (each with ``kind``, ``ratio`` and ``reached``), ``speedup`` (by
            runtime), ``search``, ``proxies``, ``seed``, ``model``, ``data`` and ``provenance``.
        episodes: ``episode``, ``return``, ``top1`` (percent), ``macs_ratio`` and ``phase`` (``warmup``,
            ``search``, or ``relaxed``: over the budget on purpose, never the best) of each; also
            ``likeness`` where ``top1`` is None.
        strategy: ``groups``, each with ``name`` and the channel counts ``dense`` and ``kept``; ``budget``.
        fronts: The Pareto fronts of ``macs`` and ``params``, each of ``return`` and ``top1``: lists of
            episodes, which then need ``params_ratio`` and ``widths`` too.

    Raises:
        AmcError: The file cannot be written.
    """
    groups, found = strategy.get("groups", ()), report.get("search", {})
    trust = report.get("proxies")
    score = "top1" if all(episode["top1"] is not None for episode in episodes) else "likeness"
    _write(
        path,
        "search.html",
        report,
        figures=list(_figures(report)),
        results=_results(report),
        limits=_limits(report),
        widths=widths_svg(groups) if groups else "",
        trust={"verdict": trust["verdict"], "rows": correlation_rows(trust)} if trust else {},
        trusted=trust_svg(trust["rows"], trust["reward"]) if trust else "",
        search={**found, **_flat(strategy.get("budget", {}), "budget")},
        curve=search_svg(episodes) if episodes else "",
        learning=learning_svg(episodes) if episodes and "learning" in episodes[0] else "",
        score=score,
        scatter=scatter_svg(episodes, score) if episodes else "",
        fronts=_fronts_of_search(episodes, fronts, found, groups) if fronts else "",
        quantized=quantization.parts(report),
    )


def write_budgets_html(
    path: str | os.PathLike[str],
    about: Json,
    rows: Sequence[Sequence[str]],
    points: Sequence[Json],
    fronts: Json,
    *,
    dense: Json,
    chosen: Sequence[Json],
) -> None:
    """Write the report of a job with several budgets, as ``write_html`` does for one.

    Args:
        path: The file to write.
        about: Optionally ``model``, ``data``, ``seed`` and ``provenance``.
        rows: The table, its head first.
        points: The episodes of all searches, with the fields that ``write_html`` names.
        fronts: The Pareto fronts of all of them together.
        dense: The dense network's ``top1`` and ``return`` in the search, where known.
        chosen: The episodes whose networks were kept, one of each search.

    Raises:
        AmcError: The file cannot be written.
    """
    plots = _fronts(points, fronts, dense, chosen) if points else ""
    _write(path, "budgets.html", about, rows=rows, fronts=plots)


def write_sparsity_html(
    path: str | os.PathLike[str], about: Json, rows: Sequence[Sequence[str]], rounds: Sequence[Json]
) -> None:
    """Write the report of rounds of fine-grained pruning, as ``write_html`` does for channels.

    Args:
        path: The file to write.
        about: Optionally ``model``, ``data``, ``seed`` and ``provenance``.
        rows: The table, its head first.
        rounds: ``density`` of each and its ``layers``, with ``name`` and the counts ``weights`` and ``kept``.

    Raises:
        AmcError: The file cannot be written.
    """
    _write(path, "sparsity.html", about, rows=rows, densities=densities_svg(rounds))


def _write(path: str | os.PathLike[str], template: str, about: Json, **parts: Any) -> None:
    title = " on ".join(str(about[key]) for key in ("model", "data") if key in about) or "Channel pruning"
    seed = {"seed": about["seed"]} if "seed" in about else {}
    origin = seed | _flat(about.get("provenance", {}))
    page = _TEMPLATES.get_template(template).render(title=title, origin=origin, **parts)
    atomic_write_text(Path(path), page)


def _stages(report: Json) -> list[tuple[str, Json]]:
    return [(label, report[key]) for key, label in _STAGES if key in report]


def _figures(report: Json) -> Iterator[tuple[str, str, str]]:
    """Yield the cards on top of the page: label, value and note."""
    dense, pruned = report["dense"], report["pruned"]
    if "macs_ratio" in report:
        change = f"{millions(dense['macs'])} M → {millions(pruned['macs'])} M"
        yield "MACs kept", f"{100 * report['macs_ratio']:.1f}\N{NO-BREAK SPACE}%", change
    stages = _stages(report)
    if all(stage["top1"] is not None for _, stage in stages):
        path = " → ".join(f"{label.lower()} {_top1(stage)}" for label, stage in stages)
        yield "Top-1 accuracy", _top1(stages[-1][1]), path
    for runtime, speedup in report.get("speedup", {}).items():
        latencies = [stage.get("latency_ms", {}).get(runtime) for stage in (dense, pruned)]
        note = " → ".join(f"{number(value)} ms" for value in latencies) if None not in latencies else ""
        yield f"Speed-up, {runtime}", f"{speedup:.2f}×", note


def _results(report: Json) -> list[list[str]]:
    """Return the table of the networks, its head first."""
    stages = _stages(report)
    runtimes = list(dict.fromkeys(name for _, stage in stages for name in stage.get("latency_ms", {})))
    rows = [["", "Top-1, %", "MACs, M", "Parameters, M", *(f"{name}, ms" for name in runtimes)]]
    for label, stage in stages:
        latency = stage.get("latency_ms", {})
        cost = [millions(stage["macs"]), millions(stage["params"])]
        times = [number(latency[name]) if name in latency else MISSING for name in runtimes]
        rows.append([label, decimals(stage["top1"], missing=MISSING), *cost, *times])
    return rows


def _limits(report: Json) -> list[list[str]]:
    """Return the table of the budget's limits, its head first; empty if the report has none."""
    rows = [
        [limit["kind"], f"{limit['ratio']:.2%}", f"{limit['reached']:.2%}"]
        for limit in report.get("limits", ())
    ]
    return [["Share of the dense network's", "Limit", "Reached"], *rows] if rows else []


def _fronts_of_search(episodes: Sequence[Json], fronts: Json, found: Json, groups: Sequence[Json]) -> str:
    kept = [group["kept"] for group in groups]
    dense = {"top1": found.get("dense_top1"), "return": found.get("dense_return")}
    chosen = [episode for episode in episodes if episode["widths"] == kept][:1]
    return _fronts(episodes, fronts, dense, chosen)


def _fronts(points: Sequence[Json], fronts: Json, dense: Json, chosen: Sequence[Json]) -> str:
    """Draw the front of each score.

    The front of the accuracy is left out where networks have none, that of the return where it goes through
    the same networks as that of the accuracy.
    """

    def networks(score: str) -> list[list[Any]]:
        return [[point["widths"] for point in fronts[cost][score]] for cost in _COSTS]

    scores = ["top1", "return"]
    if any(point["top1"] is None for point in points):
        scores = ["return"]
    elif networks("return") == networks("top1"):
        scores = ["top1"]
    return "\n".join(
        fronts_svg(
            points,
            {cost: fronts[cost][score] for cost in _COSTS},
            score,
            dense=dense.get(score),
            chosen=chosen,
        )
        for score in scores
    )


def _flat(values: Json, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with the keys joined by spaces."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix} {key}".strip()
        flat |= _flat(value, name) if isinstance(value, Mapping) else {name: value}
    return flat


def _label(key: str) -> str:
    text = key.replace("_", " ")
    return text[:1].upper() + text[1:]


def _shown(value: object) -> str:
    if value is None:
        return MISSING
    if isinstance(value, float):
        return number(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000:
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return " ".join(str(part) for part in value)
    return str(value)


def _top1(network: Json) -> str:
    return f"{network['top1']:.2f}\N{NO-BREAK SPACE}%"


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters |= {"label": _label, "shown": _shown}
