"""Stage ``report``: all results of the run in ``report.json``, ``report.html`` and a short table."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from amc.budget.allocation import uniform_widths
from amc.cost.closed_form import BilinearCost, macs_cost
from amc.files import atomic_write_json
from amc.notes import note_once
from amc.strategy import Strategy
from experiments.config.stages import STAGES
from experiments.report import write_html
from experiments.report.answers import chosen_on_test, is_missed, smaller
from experiments.report.text import aligned, cost, decimals, times_smaller
from experiments.run.folder import MADE_OF, quantizes
from experiments.run.fronts import sized, strategy_at, write_fronts

if TYPE_CHECKING:
    from experiments.run.run import Run

NETWORKS = ("dense", "pruned", "finetuned", "quantized")
_STAGES = (
    *(
        "profile",
        "proxies",
        "search",
        "choose",
        "verify",
        "finetune",
        "quantize",
        "compare",
        "export",
        "serve",
    ),
)
"""Stages whose facts are in the report as they are."""


def run(run: Run) -> dict[str, Any]:
    """Write the reports; this runs stage ``evaluate``, which measures the accuracies on the test images.

    Raises:
        FileError: the run folder has no strategy, or no pruned network of it, and no dense network was
            quantized.
    """
    from experiments.stages.pipeline import run_stage

    strategy = _strategy(run)
    evaluated, episodes = run_stage(run, "evaluate"), run.records.episodes()
    if not _is_found(run, strategy, episodes):
        episodes = []
    report = assemble(run, evaluated, strategy, episodes)
    atomic_write_json(run.folder.report.with_suffix(".json"), report)
    points = sized(run, episodes)
    fronts = write_fronts(run.folder.path, points, partial(strategy_at, run)) if points else {}
    about = strategy.to_json() if strategy is not None else {}
    write_html(run.folder.report.with_suffix(".html"), report, points, about, fronts)
    print(table(report))
    if (warned := chosen_on_test(report)) is not None:
        print(f"report: {warned}")
    if "proxies" in report and not report["proxies"]["trusted"]:
        print(f"report: {report['proxies']['verdict']}")
    if report["limits"]:
        print(f"budget: {', '.join(map(_reached, report['limits']))}")
    if advice := report.get("search", {}).get("advice"):
        print(advice)
    print(f"everything is in {run.folder}")
    return {name: report[name]["top1"] for name in NETWORKS if name in report}


def _strategy(run: Run) -> Strategy | None:
    """Return the strategy whose network was pruned; None if the dense network was quantized as it is."""
    if quantizes(run.records.read("quantize")) and not run.records.has_pruned:
        return None
    strategy = Strategy.load(run.folder.require(run.folder.strategy, "search"))
    run.records.require_pruned(run.folder.pruned)
    return strategy


def _is_found(run: Run, strategy: Strategy | None, episodes: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the strategy's network, or that which ``verify`` has repaired, is one of the search's episodes.

    One from a file may be of another search; a line is printed then. Episodes of other groups than those of
    the run are refused later, where they are drawn.
    """
    if strategy is None or not episodes:
        return True
    own = strategy.provenance.get("repaired_from", list(run.widths_of(strategy)))
    if any(episode["widths"] == own or len(episode["widths"]) != len(own) for episode in episodes):
        return True
    note_once(f"{run.folder.search} is left out: it is about another strategy")
    return False


def assemble(
    run: Run,
    evaluated: dict[str, Any],
    strategy: Strategy | None,
    episodes: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the facts of all stages as one report.

    Args:
        run: the run.
        evaluated: the facts of stage ``evaluate``.
        strategy: the strategy of the run; None if nothing was pruned.
        episodes: of the search that has found the strategy; none if it came from elsewhere.
    """
    report: dict[str, Any] = {
        "model": run.problem.spec.name,
        "data": run.problem.splits.name,
        "seed": run.config.seed,
        "agent": strategy.provenance.get("agent") if strategy is not None else None,
        MADE_OF: (run.folder.recorded("evaluate") or {}).get(MADE_OF, {}),
        **_chosen_on_test(run),
        **_shares(run, strategy),
        **{name: dict(evaluated[name]) for name in NETWORKS if name in evaluated},
    }
    speedup: dict[str, float] = {}
    timed = _timed(run, pruned=strategy is not None)
    final = next(name for name in ("finetuned", "pruned", "quantized") if name in report)
    for runtime in timed:
        if (found := runtime["comparison"]) is None:
            continue
        name = runtime["backend"]
        speedup[name] = found["speedup"]
        report["dense"].setdefault("latency_ms", {})[name] = found["dense"]["median_ms"]
        report[final].setdefault("latency_ms", {})[name] = found["pruned"]["median_ms"]
        if "quantized" in report and (other := runtime.get("others", {}).get("quantized")) is not None:
            report["quantized"].setdefault("latency_ms", {})[name] = other["pruned"]["median_ms"]
    report["speedup"] = speedup
    for stage in _STAGES:
        if stage == "search" and not episodes:
            continue
        if (facts := run.records.read(stage)) is not None and _is_about(run, strategy, stage, facts):
            report[stage] = {name: value for name, value in facts.items() if name != MADE_OF}
    layers = _layers(run, strategy) if strategy is not None else {}
    report |= _about(run, episodes) | layers | {"references": _references(run, episodes)}
    report["latency"] = timed
    report["provenance"] = run.provenance()
    return report


def _is_about(run: Run, strategy: Strategy | None, stage: str, facts: Mapping[str, Any]) -> bool:
    """Whether the facts of a stage are about the strategy, and those of ``proxies`` about its search.

    ``verify`` may have repaired what ``choose`` has chosen. A line is printed about what is left out.
    """
    if stage == "proxies":
        fits = _judges_alike(run, facts)
        why = "it is about another search (reward, budget, network or images)"
    elif stage in ("choose", "verify") or (stage == "compare" and strategy is not None):
        fits = strategy is not None and _has_widths(run, strategy, stage, facts)
        why = "it is about another strategy"
    else:
        return True
    if not fits:
        note_once(f"{run.folder.record_of(stage)} is left out: {why}")
    return fits


def _judges_alike(run: Run, facts: Mapping[str, Any]) -> bool:
    """Whether ``proxies`` has judged the score of the search, or of the settings where none is recorded.

    Records of earlier versions do not say all of it.
    """
    searched = run.records.read("search") or run.judging()
    names = ("reward", "limits", "fingerprint")
    return all(facts[name] == searched[name] for name in names if name in facts and name in searched)


def _has_widths(run: Run, strategy: Strategy, stage: str, facts: Mapping[str, Any]) -> bool:
    """Whether the facts of ``choose``, ``verify`` or ``compare`` are about the strategy's widths."""
    own = list(run.widths_of(strategy))
    match stage:
        case "choose":
            about = facts["candidates"][facts["chosen"]]["widths"]
            return bool(about == strategy.provenance.get("repaired_from", own))
        case "compare":
            about = facts.get("strategy")
            return not isinstance(about, Mapping) or bool(about.get("widths", own) == own)
        case _:
            return bool(facts.get("widths") == own)


def _chosen_on_test(run: Run) -> dict[str, int]:
    """Return how many search images are test images, if there are any."""
    pictures = run.problem.splits.pictures
    if pictures is None:
        return {}
    count = pictures.among("search_val", pictures.keys("test"), pictures.places("test"))
    return {"search_images_in_test": count} if count else {}


def _shares(run: Run, strategy: Strategy | None) -> dict[str, Any]:
    """Return what is left of the dense network's cost, and what the budget allows."""
    if strategy is None:
        return {"macs_ratio": 1.0, "params_ratio": 1.0, "budget": {}, "limits": []}
    counted = run.counted(strategy)  # that of the folder may be of an earlier release, or changed by hand
    return {
        "macs_ratio": counted.macs_ratio,
        "params_ratio": counted.params_ratio,
        "budget": dict(strategy.budget),
        "limits": _limits(run, strategy),
    }


def _timed(run: Run, *, pruned: bool) -> list[dict[str, Any]]:
    """Return the timings of stage ``benchmark``: the quantized beside the dense network if none is pruned."""
    found: list[dict[str, Any]] = (run.records.read("benchmark") or {}).get("runtimes", [])
    if pruned:
        return found
    return [{**runtime, "comparison": runtime.get("others", {}).get("quantized")} for runtime in found]


def _about(run: Run, episodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return where the run lies, when its network was found, and how long each stage took.

    ``resumed`` has the stages that took longer, as an earlier command has worked on them too.
    """
    places = [run.folder.search] if episodes and run.records.read("search") is not None else []
    places.append(run.folder.strategy)
    found = next((each for each in places if each.exists()), run.folder.record_of("quantize"))
    records = {name: run.records.read(name) or {} for name in STAGES if name != "report"}
    seconds = {name: facts["stage_seconds"] for name, facts in records.items() if "stage_seconds" in facts}
    resumed = [name for name in seconds if records[name].get("resumed")]
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(found.stat().st_mtime))
    return {"folder": str(run.folder), "date": when, "stage_seconds": seconds, "resumed": resumed}


def _layers(run: Run, strategy: Strategy) -> dict[str, Any]:
    """Return every group with its widths, MACs, coupled layers and error curve; and the layers left whole.

    The MACs of a group are those that leaving out the whole group saves, at the dense and at the kept widths.
    """
    graph, widths = run.problem.graph, run.widths_of(strategy)
    macs, curves = macs_cost(graph), (run.records.read("search") or {}).get("error_curves", {})
    groups = [
        {
            "name": group.name,
            "dense": group.width,
            "kept": widths[place],
            "macs": [_saved(macs, graph.dense_widths, place), _saved(macs, widths, place)],
            "coupled": [*group.producers[1:], *group.followers],
            "curve": curves.get(group.name, []),
        }
        for place, group in enumerate(graph.groups)
    ]
    return {
        "groups": groups,
        "left_whole": [[item.name, str(item.width), item.reason] for item in graph.unprunable],
    }


def _saved(macs: BilinearCost, widths: Sequence[int], place: int) -> int:
    without = [*widths[:place], 0, *widths[place + 1 :]]
    return macs(widths) - macs(without)


def _references(run: Run, episodes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the returns, in the search, of the dense network and of allocations that need no search.

    Those of allocations are known where the search met them.
    """
    found = run.records.read("search") or {}
    if found.get("reward") != run.reward.name or not episodes:
        return {}
    named = {"greedy": found.get("greedy_widths")}
    if "latency" not in (limit.kind for limit in run.budget.limits) or run.profiled:
        named["uniform"] = list(uniform_widths(run.space, run.budget))
    met = {tuple(own["widths"]): own["return"] for own in episodes}
    known = {name: met.get(tuple(widths)) for name, widths in named.items() if widths is not None}
    known["dense"] = found.get("dense_return")
    return {name: value for name, value in known.items() if value is not None}


def _limits(run: Run, strategy: Strategy) -> list[dict[str, Any]]:
    """Return every limit of the budget with what the strategy reached, as shares of the dense cost."""
    reached = run.reached(run.widths_of(strategy))
    return [
        {"kind": limit.kind, "ratio": limit.ratio, "reached": reached[limit.kind]}
        for limit in run.budget.limits
    ]


def _reached(limit: dict[str, Any]) -> str:
    missed = ", missed" if is_missed(limit) else ""
    return f"{limit['kind']} {limit['reached']:.4f} (limit {limit['ratio']:g}{missed})"


def table(report: dict[str, Any]) -> str:
    """Return the table that is printed at the end of a run: top-1 in percent, costs and latencies."""
    runtimes = list(report["speedup"])
    head = ["", "top-1 %", "MACs M", "params M", *(f"{name} ms" for name in runtimes)]
    rows = [head]
    for name in NETWORKS:
        if (network := report.get(name)) is None:
            continue
        latency = network.get("latency_ms", {})
        times = [decimals(latency.get(name), 3) for name in runtimes]
        rows.append([name, decimals(network["top1"]), *cost(network), *times])
    savings = [1 / report["macs_ratio"], 1 / report["params_ratio"], *report["speedup"].values()]
    rows.append([f"dense / {smaller(report)}", "", *map(times_smaller, savings)])
    return aligned(rows)
