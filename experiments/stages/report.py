"""Stage ``report``: all results of the run in ``report.json``, ``report.html`` and a short table."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from amc.files import atomic_write_json
from amc.strategy import Strategy
from experiments.report import write_html
from experiments.report.text import aligned, cost, decimals, times_smaller
from experiments.run.episodes import read_episodes
from experiments.run.folder import MADE_OF
from experiments.run.fronts import strategy_at, write_fronts

if TYPE_CHECKING:
    from experiments.run.run import Run

NETWORKS = ("dense", "pruned", "finetuned", "quantized")


def run(run: Run) -> dict[str, Any]:
    """Write the reports; this runs stage ``evaluate``, which measures the accuracies on the test images.

    Raises:
        FileError: the run folder has no strategy or no pruned network.
    """
    from experiments.stages.pipeline import run_stage

    strategy = Strategy.load(run.folder.require(run.folder.strategy, "search"))
    run.folder.require(run.folder.pruned, "prune")
    report = assemble(run, run_stage(run, "evaluate"), strategy)
    atomic_write_json(run.folder.report.with_suffix(".json"), report)
    log = run.folder.search
    episodes = read_episodes(log) if log.exists() else []
    fronts = write_fronts(run.folder.path, episodes, partial(strategy_at, run)) if episodes else {}
    write_html(run.folder.report.with_suffix(".html"), report, episodes, strategy.to_json(), fronts)
    print(table(report))
    if "proxies" in report and not report["proxies"]["trusted"]:
        print(f"report: {report['proxies']['verdict']}")
    print(f"budget: {', '.join(map(_reached, report['limits']))}")
    if advice := report.get("search", {}).get("advice"):
        print(advice)
    print(f"everything is in {run.folder}")
    return {name: report[name]["top1"] for name in NETWORKS if name in report}


def assemble(run: Run, evaluated: dict[str, Any], strategy: Strategy) -> dict[str, Any]:
    """Return the facts of all stages as one report.

    Args:
        run: the run.
        evaluated: the facts of stage ``evaluate``.
        strategy: the strategy of the run.
    """
    report: dict[str, Any] = {
        "model": run.problem.spec.name,
        "data": run.problem.splits.name,
        "seed": run.config.seed,
        "macs_ratio": strategy.macs_ratio,
        "params_ratio": strategy.params_ratio,
        "budget": dict(strategy.budget),
        "limits": _limits(run, strategy),
        **{name: dict(evaluated[name]) for name in NETWORKS if name in evaluated},
    }
    speedup: dict[str, float] = {}
    final = "finetuned" if "finetuned" in report else "pruned"
    for runtime in (run.recorded("benchmark") or {}).get("runtimes", []):
        if (found := runtime["comparison"]) is None:
            continue
        name = runtime["backend"]
        speedup[name] = found["speedup"]
        report["dense"].setdefault("latency_ms", {})[name] = found["dense"]["median_ms"]
        report[final].setdefault("latency_ms", {})[name] = found["pruned"]["median_ms"]
        if "quantized" in report and (other := runtime.get("others", {}).get("quantized")) is not None:
            report["quantized"].setdefault("latency_ms", {})[name] = other["pruned"]["median_ms"]
    report["speedup"] = speedup
    for stage in ("proxies", "search", "finetune", "quantize", "compare", "export", "serve"):
        if (facts := run.recorded(stage)) is not None:
            report[stage] = {name: value for name, value in facts.items() if name != MADE_OF}
    report["latency"] = (run.recorded("benchmark") or {}).get("runtimes", [])
    report["provenance"] = run.provenance()
    return report


def _limits(run: Run, strategy: Strategy) -> list[dict[str, Any]]:
    """Return every limit of the budget with what the strategy reached, as shares of the dense cost."""
    reached = run.reached(run.widths_of(strategy))
    return [
        {"kind": limit.kind, "ratio": limit.ratio, "reached": reached[limit.kind]}
        for limit in run.budget.limits
    ]


def _reached(limit: dict[str, Any]) -> str:
    return f"{limit['kind']} {limit['reached']:.4f} (limit {limit['ratio']:g})"


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
    rows.append(["dense / pruned", "", *map(times_smaller, savings)])
    return aligned(rows)
