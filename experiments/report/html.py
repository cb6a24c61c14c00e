"""The report of one search as a single HTML file: no scripts, no external resources, light and dark."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from amc.files import atomic_write_text
from experiments.report.plots import densities_svg, fronts_svg, scatter_svg, search_svg, widths_svg

Json = Mapping[str, Any]

_STAGES = (("dense", "Dense"), ("pruned", "Pruned"), ("finetuned", "Fine-tuned"))
_MISSING = "–"

_CSS = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --line: #e3e6eb; --ink: #1b2330;
  --muted: #667085; --grid: #e3e6eb; --accent: #2f6fde; --warm: #98a2b3; --best: #d9480f; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1319; --card: #171c25; --line: #2a313d;
  --ink: #e8ecf2; --muted: #98a4b5; --grid: #2a313d; --accent: #6ea0ff; --warm: #7b8798; --best: #ff9457; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { font-size: 26px; line-height: 1.25; letter-spacing: -0.01em; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 0 0 12px; }
p { margin: 4px 0 0; color: var(--muted); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 20px 22px;
  margin-top: 20px; overflow-x: auto; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 14px;
  margin-top: 26px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 16px 18px; }
.card .label { color: var(--muted); font-size: 13px; }
.card .value { font-size: 28px; font-weight: 650; line-height: 1.3; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; }
.card .note { color: var(--muted); font-size: 13px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 12px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; } thead th { color: var(--muted); font-size: 13px; }
tr > :first-child { text-align: left; padding-left: 0; } tr > :last-child { padding-right: 0; }
tbody tr:last-child > * { border-bottom: 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 6px 24px; margin: 0; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
.facts { display: flex; flex-wrap: wrap; gap: 8px 36px; margin-bottom: 8px; }
.facts dt { font-size: 13px; } .facts dd { font-weight: 600; font-variant-numeric: tabular-nums; }
code { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
svg { display: block; width: 100%; min-width: 640px; height: auto; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif !important; }
@media print { body { background: none; } section, .card { break-inside: avoid; } }
"""


def write_html(
    path: str | os.PathLike[str],
    report: Json,
    episodes: Sequence[Json],
    strategy: Json,
    fronts: Json | None = None,
) -> None:
    """Write the report as one file, whole or not at all; the same input gives the same bytes.

    Args:
        path: The file to write.
        report: ``dense``, ``pruned`` and optionally ``finetuned``, each with ``top1`` (percent), ``macs``,
            ``params`` (counts) and optionally ``latency_ms`` (milliseconds by runtime); and optionally
            ``macs_ratio``, ``speedup`` (by runtime), ``search``, ``seed``, ``model``, ``data`` and
            ``provenance``.
        episodes: ``episode``, ``return``, ``top1`` (percent), ``macs_ratio`` and ``phase`` (``warmup``,
            ``search``, or ``relaxed``: over the budget on purpose, never the best) of each.
        strategy: ``groups``, each with ``name`` and the channel counts ``dense`` and ``kept``; ``budget``.
        fronts: the Pareto fronts of ``macs`` and ``params``, each of ``return`` and ``top1``: lists of
            episodes, which then need ``params_ratio`` and ``widths`` too.

    A part that is absent or empty leaves its section out.

    Raises:
        AmcError: The file cannot be written.
    """
    text = "".join(_page(report, "Channel pruning", _body(report, episodes, strategy, fronts)))
    atomic_write_text(Path(path), text)


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
    """Write what a job found under several budgets, as ``write_html`` does for one.

    Args:
        path: The file to write.
        about: optionally ``model``, ``data``, ``seed`` and ``provenance``.
        rows: the table, its head first.
        points: the episodes of all searches, with the fields that ``write_html`` names.
        fronts: the Pareto fronts of all of them together.
        dense: the dense network's ``top1`` and ``return`` in the search, where known.
        chosen: the episodes whose networks were kept, one of each search.

    Raises:
        AmcError: The file cannot be written.
    """
    plots = _fronts(points, fronts, dense, chosen) if points else ""
    body = (("Budgets", _table(rows)), ("Pareto fronts", plots), ("Provenance", _provenance(about)))
    page = _page(about, "Channel pruning under several budgets", (_section(*part) for part in body))
    atomic_write_text(Path(path), "".join(page))


def write_sparsity_html(
    path: str | os.PathLike[str], about: Json, rows: Sequence[Sequence[str]], rounds: Sequence[Json]
) -> None:
    """Write what rounds of fine-grained pruning left, as ``write_html`` does for channels.

    Args:
        path: The file to write.
        about: optionally ``model``, ``data``, ``seed`` and ``provenance``.
        rows: the table, its head first.
        rounds: ``density`` of each and its ``layers``, with ``name`` and the counts ``weights`` and ``kept``.

    Raises:
        AmcError: The file cannot be written.
    """
    parts = (
        ("Rounds", _table(rows)),
        ("Weights kept per layer", densities_svg(rounds)),
        ("Provenance", _provenance(about)),
    )
    page = _page(about, "Fine-grained pruning", (_section(*part) for part in parts))
    atomic_write_text(Path(path), "".join(page))


def _page(about: Json, kind: str, body: Iterable[str]) -> Iterator[str]:
    title = " on ".join(str(about[key]) for key in ("model", "data") if key in about) or "Channel pruning"
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield f"<title>{escape(title)} · AMC Search</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
    yield f"<header><h1>{escape(title)}</h1><p>{escape(kind)} found by AMC Search</p></header>\n"
    yield from body
    yield "</main>\n</body>\n</html>\n"


def _body(report: Json, episodes: Sequence[Json], strategy: Json, fronts: Json | None) -> Iterator[str]:
    yield f'<div class="cards">\n{"".join(_cards(report))}</div>\n'
    yield _section("Results", _results_table(report))
    groups = strategy.get("groups", ())
    yield _section("Channels per group", widths_svg(groups) if groups else "")
    facts = _facts({**report.get("search", {}), **_flat(strategy.get("budget", {}), "budget")})
    yield _section("Search", facts + (search_svg(episodes) if episodes else ""))
    yield _section("Accuracy against MACs", scatter_svg(episodes) if episodes else "")
    if fronts:
        kept = [group["kept"] for group in groups]
        found = report.get("search", {})
        dense = {"top1": found.get("dense_top1"), "return": found.get("dense_return")}
        chosen = [episode for episode in episodes if episode["widths"] == kept][:1]
        yield _section("Pareto fronts", _fronts(episodes, fronts, dense, chosen))
    yield _section("Provenance", _provenance(report))


def _fronts(points: Sequence[Json], fronts: Json, dense: Json, chosen: Sequence[Json]) -> str:
    """The front of the return is left out where it goes through the same networks as that of the accuracy."""

    def networks(score: str) -> list[list[Any]]:
        return [[point["widths"] for point in fronts[cost][score]] for cost in ("macs", "params")]

    scores = ["top1"] if networks("return") == networks("top1") else ["top1", "return"]
    return "\n".join(
        fronts_svg(
            points,
            {cost: fronts[cost][score] for cost in ("macs", "params")},
            score,
            dense=dense.get(score),
            chosen=chosen,
        )
        for score in scores
    )


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>\n" if content else ""


def _cards(report: Json) -> Iterator[str]:
    stages = [(label, report[key]) for key, label in _STAGES if key in report]
    dense, pruned = report["dense"], report["pruned"]
    if "macs_ratio" in report:
        change = f"{_millions(dense['macs'])} M → {_millions(pruned['macs'])} M"
        yield _card("MACs kept", _percent(report["macs_ratio"]), change)
    path = " → ".join(f"{label.lower()} {_top1(stage)}" for label, stage in stages)
    yield _card("Top-1 accuracy", _top1(stages[-1][1]), path)
    for runtime, speedup in report.get("speedup", {}).items():
        latencies = [stage.get("latency_ms", {}).get(runtime) for stage in (dense, pruned)]
        note = " → ".join(f"{_number(value)} ms" for value in latencies) if None not in latencies else ""
        yield _card(f"Speed-up, {runtime}", f"{speedup:.2f}×", note)


def _card(label: str, value: str, note: str) -> str:
    return (
        f'<div class="card"><div class="label">{escape(label)}</div>'
        f'<div class="value">{escape(value)}</div><div class="note">{escape(note)}</div></div>\n'
    )


def _results_table(report: Json) -> str:
    stages = [(label, report[key]) for key, label in _STAGES if key in report]
    runtimes = list(dict.fromkeys(name for _, stage in stages for name in stage.get("latency_ms", {})))
    head = ["", "Top-1, %", "MACs, M", "Parameters, M", *(f"{name}, ms" for name in runtimes)]
    rows = [head]
    for label, stage in stages:
        latency = stage.get("latency_ms", {})
        cells = [f"{stage['top1']:.2f}", _millions(stage["macs"]), _millions(stage["params"])]
        cells += [_number(latency[name]) if name in latency else _MISSING for name in runtimes]
        rows.append([label, *cells])
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, body = _row("th", rows[0]), "".join(_row("td", row) for row in rows[1:])
    return f"<table>\n<thead>\n{head}</thead>\n<tbody>\n{body}</tbody>\n</table>"


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>\n"


def _facts(values: Json) -> str:
    """Short values side by side, such as the agent and the number of episodes."""
    items = [
        f"<div><dt>{_label(key)}</dt><dd>{escape(_shown(value))}</dd></div>" for key, value in values.items()
    ]
    return f'<dl class="facts">{"".join(items)}</dl>\n' if items else ""


def _provenance(report: Json) -> str:
    values = {key: report[key] for key in ("seed",) if key in report} | _flat(report.get("provenance", {}))
    items = [
        f"<dt>{_label(key)}</dt><dd><code>{escape(_shown(value))}</code></dd>"
        for key, value in values.items()
    ]
    return f"<dl>{''.join(items)}</dl>" if items else ""


def _flat(values: Json, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with the keys joined by spaces."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix} {key}".strip()
        flat |= _flat(value, name) if isinstance(value, Mapping) else {name: value}
    return flat


def _label(key: str) -> str:
    text = key.replace("_", " ")
    return escape(text[:1].upper() + text[1:])


def _shown(value: object) -> str:
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000:
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return " ".join(str(part) for part in value)
    return str(value)


def _top1(network: Json) -> str:
    return f"{network['top1']:.2f}\N{NO-BREAK SPACE}%"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}\N{NO-BREAK SPACE}%"


def _millions(count: float) -> str:
    return _number(count / 1e6)


def _number(value: float) -> str:
    """Three or four significant digits, without an exponent in the usual range."""
    size = abs(value)
    return f"{value:,.{0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 4}f}"
