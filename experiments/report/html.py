"""Reports as single HTML files: no external resources, light and dark, readable on paper and on a phone.

The pages are the templates beside this module. Every value is escaped; only the plots, which are made here,
enter a page as they are. The one script is ours, and its hash is all that the page allows to run.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from amc.files import atomic_write_text
from experiments.report import answers, quantization, sections
from experiments.report.charts import Level, Place, Series, chart, spark
from experiments.report.plots import densities_svg, learning_svg, shortened, trust_svg
from experiments.report.text import MISSING, correlation_rows, millions, number

Json = Mapping[str, Any]

_COSTS = {"macs": "MACs", "params": "parameters", "size": "bytes"}
_SCORE = {
    "top1": "top-1 in the search, %",
    "likeness": "likeness in the search",
    "return": "return",
}
_SPREAD = 0.02
"""Shares of the MACs that differ by less make a vertical line, which says nothing."""


def write_html(
    path: str | os.PathLike[str],
    report: Json,
    episodes: Sequence[Json],
    strategy: Json,
    fronts: Json | None = None,
) -> None:
    """Write the report of one search as one file, whole or not at all; the same input gives the same bytes.

    The page answers, in this order: what was gained, what it cost, which layers, whether the search has
    converged, and what to do next. A part that is absent or empty leaves its section out. A network without
    accuracy has ``top1`` None everywhere; the plots then show the likeness.

    Args:
        path: The file to write.
        report: ``dense`` and some of ``pruned``, ``finetuned`` and ``quantized``, each with ``top1``
            (percent), ``macs``, ``params`` (counts) and optionally ``latency_ms`` (milliseconds by runtime),
            ``images``, ``lost`` and ``gained`` (test images); and optionally ``macs_ratio``, ``limits`` (each
            with ``kind``, ``ratio`` and ``reached``), ``speedup`` (by runtime), ``groups`` and ``left_whole``
            (the layers), ``references`` (returns by name), ``date``, ``folder``, ``stage_seconds`` and those
            that were ``resumed``, the facts of stages, ``seed``, ``model``, ``data`` and ``provenance``.
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
        kind="Channel pruning" if answers.smaller(report) == "pruned" else "Quantization",
        gain=answers.gain(report),
        runtimes=sections.runtimes(report),
        limits=sections.limits(report),
        loss=answers.loss(report),
        warnings=list(answers.warnings(report)),
        results=answers.results(report),
        robustness=sections.robustness(report),
        compared=sections.compared(report),
        groups=list(_groups(report.get("groups") or groups)),
        left_whole=[["Layer", "Channels", "Why"], *report.get("left_whole", ())],
        convergence=answers.convergence(episodes, found) if episodes else "",
        chosen=sections.chosen(report),
        curve=_curve(episodes, report),
        scatter=_scatter(episodes, score),
        fronts=_fronts_of_search(episodes, fronts, found, groups) if fronts else "",
        search=_flat(strategy.get("budget", {}), "budget") | _short(found),
        steps=answers.next_steps(report, episodes),
        files=sections.files(report),
        load=answers.load_snippet(report) if "folder" in report else "",
        run_it=_run_it(report),
        points=answers.points(report, fronts or {}),
        quantized=quantization.parts(report),
        trust={"verdict": trust["verdict"], "rows": correlation_rows(trust)} if trust else {},
        trusted=trust_svg(trust["rows"], trust["reward"]) if trust else "",
        learning=learning_svg(episodes),
        serving=sections.serving(report),
        latency_budget=sections.latency_budget(report),
        durations=sections.durations(report),
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
    links: Sequence[tuple[str, str]] = (),
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
        links: Names and places of the runs' own reports.

    Raises:
        AmcError: The file cannot be written.
    """
    plots = _fronts(points, fronts, dense, chosen) if points else ""
    _write(path, "budgets.html", about, rows=rows, fronts=plots, links=links)


def write_compared_html(
    path: str | os.PathLike[str],
    title: str,
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    links: Sequence[tuple[str, str]],
    costs: Sequence[Place],
    searches: Mapping[str, Sequence[Json]],
) -> None:
    """Write finished runs side by side.

    Args:
        path: The file to write.
        title: Of the page.
        rows: A table with a row for each run, its head first.
        notes: What the runs differ in that makes them hard to compare.
        links: Names and places of the runs' own reports.
        costs: Share of the MACs (percent) and top-1 accuracy (percent) of each run, with its name.
        searches: Episodes by run.

    Raises:
        AmcError: The file cannot be written.
    """
    colours = ("accent", "best", "warm", "ink", "muted")
    series = [
        Series(name, colours[place % len(colours)], [*_best_so_far(name, own)], "steps")
        for place, (name, own) in enumerate(searches.items())
    ]
    _write(
        path,
        "compared.html",
        {"model": title},
        rows=rows,
        notes=notes,
        links=links,
        costs=chart(
            "Accuracy of each run against its MACs",
            [Series("run", "accent", costs)],
            "MACs, % of dense",
            "top-1 on the test images, %",
        ),
        searches=chart("Best return so far in each search", series, "episode", "return"),
    )


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
    script = _TEMPLATES.get_template("script.js").render()
    page = _TEMPLATES.get_template(template).render(
        title=title,
        about=[*_about(about)],
        command=about.get("provenance", {}).get("command", ""),
        origin=seed | _flat(about.get("provenance", {})),
        script=script,
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
        **parts,
    )
    atomic_write_text(Path(path), page)


def _about(about: Json) -> Iterator[str]:
    """Yield what stands below the title: the date and the time that all stages took."""
    if "date" in about:
        yield str(about["date"])
    if about.get("stage_seconds"):
        yield f"{sections.taken(about, *about['stage_seconds'])} of work"


def _groups(groups: Sequence[Json]) -> Iterator[dict[str, Any]]:
    """Yield the row of each channel group; MACs, error curve and coupled layers only where they are known."""
    for group in groups:
        dense, kept = group["dense"], group["kept"]
        macs = group.get("macs")
        curve = group.get("curve", ())
        yield {
            "name": group["name"],
            "short": shortened(str(group["name"])),
            "dense": dense,
            "kept": kept,
            "share": 100 * kept / dense if dense else 0.0,
            "macs": " → ".join(millions(value) for value in macs) if macs else MISSING,
            "curve": _spark(group, curve) if len(curve) > 1 else MISSING,
            "coupled": ", ".join(group.get("coupled", ())) or MISSING,
        }


def _spark(group: Json, curve: Sequence[tuple[int, float]]) -> str:
    kept = group["kept"]
    _, error = min(curve, key=lambda point: abs(point[0] - kept))
    return spark(curve, kept, f"estimated output error {error:.3g} at {kept} channels")


def _curve(episodes: Sequence[Json], report: Json) -> str:
    """Draw the return of every episode, the best so far, and the returns of networks that need no search."""
    phases = (
        ("warmup", "warm", "warm-up"),
        ("search", "muted", "search"),
        ("relaxed", "warm", "over the budget"),
    )
    series = [
        Series(label, colour, [_of_search(own) for own in episodes if own.get("phase") == phase])
        for phase, colour, label in phases
    ]
    still = [own for own in episodes if own.get("learning", {}).get("explored") == 0.0]
    series.append(Series("policy without noise", "accent", [_of_search(own) for own in still]))
    series.append(Series("best so far", "best", [*_best_so_far("best so far", episodes)], "steps"))
    levels = [Level(name, value) for name, value in report.get("references", {}).items() if value is not None]
    reward = report.get("search", {}).get("reward")
    return chart(
        "Return of every network of the search, and the best so far",
        series,
        "episode",
        f"return ({reward})" if reward else "return",
        levels,
    )


def _best_so_far(name: str, episodes: Sequence[Json]) -> Iterator[Place]:
    kept = [own for own in episodes if own.get("phase") != "relaxed"]
    best = accumulate((own["return"] for own in kept), max)
    for own, value in zip(kept, best, strict=True):
        yield own["episode"], value, f"{name}: {number(value)}"


def _of_search(own: Json) -> Place:
    told = f"episode {own['episode']}: return {number(own['return'])}, {own['macs_ratio']:.1%} of the MACs"
    accuracy = "" if own["top1"] is None else f", {own['top1']:.2f}%"
    return own["episode"], own["return"], told + accuracy


def _scatter(episodes: Sequence[Json], score: str) -> str:
    """Draw a score against the MACs; nothing where all networks cost nearly the same."""
    if not episodes or _spread(episodes, "macs_ratio") < _SPREAD:
        return ""
    phases = (
        ("warmup", "warm", "warm-up"),
        ("search", "accent", "search"),
        ("relaxed", "muted", "over the budget"),
    )
    series = [
        Series(
            label,
            colour,
            [_judged(own, "macs_ratio", score) for own in episodes if own.get("phase") == phase],
        )
        for phase, colour, label in phases
    ]
    within = [own for own in episodes if own.get("phase") != "relaxed"]
    best = max(within or episodes, key=lambda own: own["return"])
    series.append(Series("best return", "best", [_judged(best, "macs_ratio", score)], "rings"))
    title = f"{'Accuracy' if score == 'top1' else 'Likeness'} of every network of the search against its MACs"
    return chart(title, series, "MACs, % of dense", _SCORE[score])


def _spread(points: Sequence[Json], cost: str) -> float:
    shares = [point[cost] for point in points]
    return max(shares) - min(shares)


def _judged(point: Json, cost: str, score: str) -> Place:
    named = f"{point['folder']}, " if "folder" in point else ""
    told = f"{named}episode {point['episode']}: {point[cost]:.1%}, {score} {number(point[score])}"
    return 100 * point[cost], point[score], told


def _short(found: Json) -> dict[str, Any]:
    """Return the facts of a search that fit beside each other."""
    long = ("error_curves", "greedy_widths", "group_names", "limits", "fingerprint")
    left_out = ("stage_seconds", "resumed", "advice", *long)
    return {key: value for key, value in found.items() if key not in left_out and value is not None}


def _run_it(report: Json) -> str:
    if (predict := (report.get("export") or {}).get("predict")) is None:
        return ""
    place = report.get("folder", "RUN")
    packages = [f"pip install {needed}" for needed in dict.fromkeys(own["needs"] for own in predict)]
    scripts = [
        shlex.join(["python", f"{place}/{own['file']}", "PICTURE.jpg", "--network", own["network"]])
        for own in predict
    ]
    return "\n".join([*packages, *scripts])


def _fronts_of_search(episodes: Sequence[Json], fronts: Json, found: Json, groups: Sequence[Json]) -> str:
    kept = [group["kept"] for group in groups]
    dense = {"top1": found.get("dense_top1"), "return": found.get("dense_return")}
    chosen = [episode for episode in episodes if episode["widths"] == kept][:1]
    return _fronts(episodes, fronts, dense, chosen)


def _fronts(points: Sequence[Json], fronts: Json, dense: Json, chosen: Sequence[Json]) -> str:
    """Draw the front of each score and cost.

    The front of the accuracy is left out where networks have none, that of the return where it goes through
    the same networks as that of the accuracy, and so is a front of a single network, or
    over costs that hardly differ.
    """

    costs = [cost for cost in _COSTS if cost in fronts]

    def networks(score: str) -> list[list[Any]]:
        return [[point["widths"] for point in fronts[cost][score]] for cost in costs]

    scores = ["top1", "return"]
    if any(point["top1"] is None for point in points):
        scores = ["return"]
    elif networks("return") == networks("top1"):
        scores = ["top1"]
    drawn = [
        _front(points, fronts[cost][score], cost, score, dense.get(score), chosen)
        for score in scores
        for cost in costs
        if len(fronts[cost][score]) > 1 and _spread(points, f"{cost}_ratio") >= _SPREAD
    ]
    return "\n".join(drawn)


def _front(
    points: Sequence[Json],
    front: Sequence[Json],
    cost: str,
    score: str,
    dense: float | None,
    chosen: Sequence[Json],
) -> str:
    ratio = f"{cost}_ratio"
    series = [
        Series("judged", "warm", [_judged(own, ratio, score) for own in points]),
        Series("Pareto front", "accent", [_judged(own, ratio, score) for own in front], "line"),
        Series("chosen", "best", [_judged(own, ratio, score) for own in chosen], "rings"),
    ]
    levels = [] if dense is None else [Level("dense", dense)]
    title = f"The best networks at any number of {_COSTS[cost]}"
    return chart(title, series, f"{_COSTS[cost]}, % of dense", _SCORE[score], levels)


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


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters |= {"label": _label, "shown": _shown}
