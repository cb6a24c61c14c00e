"""A job: the stages of a run, or of one run for each of several budgets, with a summary at the end.

With several budgets the run folder holds the parts that do not depend on the budget: the dense network and
the evaluations of all searches. Each budget has a run folder of its own below it, such as ``macs_0.30``.
Single stages can be run on that folder as on any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from amc.cost.closed_form import macs_cost
from amc.files import atomic_write_json
from amc.strategy import Strategy
from experiments.command.lock import locked
from experiments.command.memory.identity import remembering
from experiments.command.overrides import config_options
from experiments.config.budgets import folder_name, listed_budgets, own_overrides
from experiments.config.schema import path_keys
from experiments.config.stages import MAKING, WITHOUT_BUDGET
from experiments.report import write_budgets_html
from experiments.report.answers import is_missed, quantized_speedups
from experiments.report.text import aligned, cost, decimals, times_smaller
from experiments.run.check import check_feasible
from experiments.run.folder import quantizes
from experiments.run.fronts import fronts, sized, strategy_at, write_strategies
from experiments.run.provenance import hand_over, kept_facts
from experiments.run.reports import has_current_report
from experiments.run.run import Run, set_up_process
from experiments.run.values import SEARCHING
from experiments.stages.pipeline import run_stages

VERSION = 1
_COUNTED = ("macs", "params")
"""Costs of which every table has the numbers."""


def run_job(run: Run, overrides: Sequence[str]) -> None:
    """Run the configured stages, once for each budget if several are listed.

    Args:
        run: the run of the whole job.
        overrides: the overrides that the user gave.

    Raises:
        AmcError: a stage failed.
        Stopped: the user stopped a stage.
    """
    names = run.stages  # those of a latency budget change with its profile
    _run_job(run, names, overrides)
    run.folder.forget_begun(*names)


def _run_job(run: Run, names: Sequence[str], overrides: Sequence[str]) -> None:
    budgets = listed_budgets(run.config.budget)
    if not budgets:
        run_stages(run, names)
        return
    if common := [name for name in names if name in WITHOUT_BUDGET]:
        run_stages(run, common)
    if len(common) == len(names):
        return
    if SEARCHING & set(names):
        for ratios in budgets:  # a latency is known only after its profile
            check_feasible(run, run.budget_of(ratios))
    parts: list[Run] = []
    try:
        for ratios in budgets:
            parts.append(run.for_budget(ratios, run.folder.path / folder_name(ratios)))
            if not parts[-1].stages:  # verify alone was asked for, which is for limits on the latency
                continue
            print(f"budget {len(parts)} of {len(budgets)}: {parts[-1].folder}")
            set_up_process(parts[-1].config)
            own = own_overrides(ratios, overrides)
            with locked(parts[-1].folder.path), _remembering(parts[-1], own):
                run_stages(parts[-1], parts[-1].stages, keep_evaluator=True)
        if MAKING & set(names):
            run.made_strategy()  # every budget has one of its own
    finally:
        run.problem.release()
    summarise(run, parts)


@contextmanager
def _remembering(part: Run, overrides: Sequence[str]) -> Iterator[None]:
    """Make the folder of one budget a complete run folder: dense network, configuration, overrides."""
    problem, folder = part.problem, part.folder.path
    problem.keep_dense()
    part.folder.take_dense(problem.folder)
    hand_over(problem.folder.path, folder, "train")
    overrides = [*overrides, f"stages=[{','.join(part.stages)}]"]
    hydra = {
        "config.yaml": OmegaConf.to_yaml(OmegaConf.structured(part.config)),
        "overrides.yaml": OmegaConf.to_yaml(overrides),
    }
    options = config_options(HydraConfig.get())
    with remembering(folder, overrides, options, paths=path_keys(), hydra=hydra) as identity:
        identity.accept()
        yield


def summarise(run: Run, parts: Sequence[Run]) -> None:
    """Write ``budgets.json``, ``budgets.html`` and the strategies of the joint front; print a table.

    Args:
        run: the run of the whole job.
        parts: the runs of its budgets.
    """
    origin = {**run.provenance(), **kept_facts(run.folder.path)}
    atomic_write_json(run.folder.provenance, origin)
    if not (found := {part.folder.name: part for part in parts if (part.folder.strategy).exists()}):
        return
    points = [
        {"folder": name, **point}
        for name, part in found.items()
        for point in sized(part, part.records.episodes())
    ]
    joint = write_strategies(
        run.folder.path, fronts(points), lambda point: strategy_at(found[point["folder"]], point)
    )
    about = {"model": run.problem.spec.name, "data": run.problem.splits.name, "seed": run.config.seed}
    budgets, dense = [row(part) for part in found.values()], _dense(next(iter(found.values())))
    summary = {"version": VERSION, **about, "dense": dense, "budgets": budgets, "pareto": joint}
    atomic_write_json(run.folder.budgets.with_suffix(".json"), summary)
    places = [(point["folder"], point["widths"]) for point in points]
    kept = [(budget["folder"], budget["widths"]) for budget in budgets]
    write_budgets_html(
        run.folder.budgets.with_suffix(".html"),
        {**about, "provenance": run.provenance()},
        table(summary),
        points,
        joint,
        dense=dense["search"],
        chosen=[points[places.index(place)] for place in kept if place in places],
        links=[
            (name, f"{name}/{part.folder.report.name}.html")
            for name, part in found.items()
            if has_current_report(part.folder)
        ],
    )
    print(aligned(table(summary)))
    print(f"everything is in {run.folder}")


def row(part: Run) -> dict[str, Any]:
    """Return the results of one budget, without those that no stage has measured."""
    widths = part.widths_of(Strategy.load(part.folder.strategy))
    dense, macs = part.problem.graph.dense_widths, macs_cost(part.problem.graph)
    facts: dict[str, Any] = {
        **part.budget.described(),
        "reached": part.reached(widths),
        "folder": part.folder.name,
        "macs": macs(widths),
        "params": part.problem.params(widths),
        "macs_ratio": macs(widths) / macs(dense),
        "params_ratio": part.problem.params(widths) / part.problem.params(dense),
        "widths": list(widths),
    }
    # a later stage, or a file, may have given another network than the search has found
    if (
        met := next((own for own in part.records.episodes() if own["widths"] == list(widths)), None)
    ) is not None:
        facts["top1_search"] = met["top1"]
    for name, network in (part.records.read("evaluate") or {}).items():
        if name in ("pruned", "finetuned"):
            facts[f"top1_{name}"] = network["top1"]
    return facts | _of_the_last(part)


def _of_the_last(part: Run) -> dict[str, Any]:
    """Return the speed-ups of the last network of one budget, and its accuracy if that one is quantized.

    Of a budget whose network is not pruned yet there are none: what was quantized is the dense network.
    """
    if not part.records.has_pruned:
        return {"speedup": {}}
    runtimes = (part.records.read("benchmark") or {}).get("runtimes", [])
    quantized = part.records.read("quantize") or {}
    if not quantizes(quantized):
        return {"speedup": {r["backend"]: r["comparison"]["speedup"] for r in runtimes if r["comparison"]}}
    top1 = {} if quantized.get("top1") is None else {"top1_quantized": quantized["top1"]}
    return {**top1, "speedup": quantized_speedups(runtimes)}


def _dense(part: Run) -> dict[str, Any]:
    """Return the dense network's cost and the scores that stages of ``part`` have measured."""
    widths = part.problem.graph.dense_widths
    facts: dict[str, Any] = {
        "macs": macs_cost(part.problem.graph)(widths),
        "params": part.problem.params(widths),
    }
    if (evaluated := part.records.read("evaluate")) is not None:
        facts["top1"] = evaluated["dense"]["top1"]
    found = part.records.read("search") or {}
    same_reward = found.get("reward") == part.reward.name
    search = {
        "top1": found.get("dense_top1"),
        "return": found.get("dense_return") if same_reward else None,
    }
    return {**facts, "search": {name: value for name, value in search.items() if value is not None}}


def table(summary: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the table of all budgets, the head first.

    Top-1 accuracies are in percent: "search" on search_val, the others on test. A runtime's column is the
    speed-up of the last network, the quantized one where there is one. That of a limit beside the leading
    one, or on another cost than MACs and parameters, is the share of the dense cost that was reached.
    """
    dense, budgets = summary["dense"], summary["budgets"]
    further = dict(limit for budget in budgets for limit in budget.get("further", {}).items())
    leading = list(dict.fromkeys(own["kind"] for own in budgets if own["kind"] not in _COUNTED))
    runtimes = list(dict.fromkeys(name for budget in budgets for name in budget["speedup"]))
    limits = [*leading, *(f"{kind} <= {ratio:g}" for kind, ratio in further.items())]
    judged = {"search": "search", "pruned": "pruned", "finetuned": "fine-tuned"}
    if any("top1_quantized" in budget for budget in budgets):
        judged["quantized"] = "quantized"
    head = ["", "MACs M", "params M", *limits, *judged.values(), *runtimes]
    top1 = [dense["search"].get("top1"), dense.get("top1"), *[None] * (len(judged) - 2)]
    whole = ["dense", *cost(dense), *[""] * len(limits), *map(decimals, top1), *[""] * len(runtimes)]
    rows = [head, whole]
    for budget in budgets:
        top1 = [budget.get(f"top1_{when}") for when in judged]
        speedup = [times_smaller(budget["speedup"].get(name)) for name in runtimes]
        ratios = {budget["kind"]: budget["ratio"], **budget.get("further", {})}
        reached = [_reached(budget["reached"], ratios, kind) for kind in (*leading, *further)]
        rows.append([budget["folder"], *cost(budget), *reached, *map(decimals, top1), *speedup])
    return rows


def _reached(reached: Mapping[str, float], ratios: Mapping[str, float], kind: str) -> str:
    """Return the share of a cost that was reached, and whether it is over the limit; empty without one."""
    if kind not in ratios:
        return ""
    missed = ", missed" if is_missed({"ratio": ratios[kind], "reached": reached[kind]}) else ""
    return decimals(reached[kind], 4) + missed
