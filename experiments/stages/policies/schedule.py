"""Stage ``schedule``: prunes in steps, with a search at each and a short training between them.

It takes the place of ``search`` and ``prune``. Every step cuts the network that the step before has left, so
that channel orders, error curves and refits are of a network that has recovered. Budgets are shares of the
original network at every step. With ``schedule.rewind`` the weights that stay go back to those of a file
after each step, e.g. to early ones of the dense training (Frankle et al. 2020, arXiv 1912.05671).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from amc.cutting.slicing import slice_model
from amc.files import atomic_write_bytes
from amc.models.checkpoint import load_into
from amc.models.state_files import load_state_dict, save_safetensors
from amc.strategy import Strategy
from experiments.config.budgets import own_fields, scheduled_budgets, single_budget
from experiments.run.folder import MADE_OF, RunFolder
from experiments.run.run import Run
from experiments.run.trackers import Metrics, Tracker
from experiments.stages.pipeline import run_stage
from experiments.stages.policies.cut_problem import CutProblem

if TYPE_CHECKING:
    from experiments.config.budgets import Ratios
    from experiments.run.problem.problem import Problem

REWOUND = "rewound.safetensors"
"""File of a step: the weights of ``schedule.rewind``, cut to the widths of the step."""


def run(run: Run) -> dict[str, Any]:
    """Write ``strategy.json`` and ``pruned.safetensors`` of the last step; every step has a folder.

    A killed stage goes on where it was: each step resumes its search and its training.

    Raises:
        AmcError: a step cannot be carried out.
    """
    facts: list[dict[str, Any]] = []
    last: Run | None = None
    for step in _steps(run):
        facts.append(_carried_out(step, rewind=_rewind_file(run, last)))
        run.tracker.log(_scores(facts[-1]), len(facts))
        run.looked_up |= facts[-1].pop("resumed", False)
        step.problem.release()
        last = step
    assert last is not None
    _take_over(run, last)
    return {"steps": facts}


def _steps(run: Run) -> Iterator[Run]:
    """Yield the run of each step; the one before must have ended when the next is asked for."""
    budgets = scheduled_budgets(run.config.schedule.ratios, single_budget(run.config.budget))
    problem: Problem = run.problem
    before = run.folder
    for number, ratios in enumerate(budgets, start=1):
        folder = RunFolder.made(run.folder.path / "steps" / f"{number}")
        config = _config(run, ratios, folder, trains=number < len(budgets))
        if number > 1:
            problem = CutProblem(config, folder, run.problem, Strategy.load(before.strategy), before.model)
        print(f"schedule: step {number} of {len(budgets)}: {_told(ratios)}")
        yield Run(config, folder, problem, _tracking(run, number))
        before = folder


def _tracking(run: Run, number: int) -> Tracker:
    """Return the tracker of a step: its metrics are the run's, under a name of the step."""

    def log(metrics: Metrics, step: int) -> None:
        run.tracker.log({f"step{number}/{name}": value for name, value in metrics.items()}, step)

    return Tracker(log, lambda summary, files, failed: None)


def _config(run: Run, ratios: Ratios, folder: RunFolder, *, trains: bool) -> Any:
    own: Mapping[str, Any] = own_fields(ratios)
    epochs, rewinds = run.config.schedule.epochs, run.config.schedule.rewind is not None
    refits = run.config.prune.sequential and not rewinds  # other weights replace those of a refit
    return replace(
        run.config,
        stages=["search", "prune", *(["finetune"] if trains and epochs else [])],
        run_dir=str(folder.path),
        budget=replace(run.config.budget, **own),
        prune=replace(run.config.prune, sequential=refits),
        finetune=replace(run.config.finetune, epochs=epochs),
    )


def _carried_out(step: Run, rewind: Path | None) -> dict[str, Any]:
    """Search, prune and, but for the last step, train; return the facts of the step."""
    found = {name: run_stage(step, name) for name in ("search", "prune")}
    if rewind is not None:
        _rewind(step, rewind)
        file = step.config.schedule.rewind
        step.record("prune", found["prune"] | {"refit": f"none, the weights are rewound to {file}"})
        print(f"schedule: the channels that stay have the weights of {file}")
    if "finetune" in step.stages:
        found["finetune"] = run_stage(step, "finetune")
    resumed = any(own.get("resumed") for own in found.values())
    search, trained = found["search"], found.get("finetune", {})
    strategy = step.strategy()
    return {
        "ratios": dict(single_budget(step.config.budget)),
        "macs_ratio": strategy.macs_ratio,
        "params_ratio": strategy.params_ratio,
        "search_top1": search["best_top1"],
        "trained_top1": trained.get("val_top1"),
        "folder": str(step.folder.path.relative_to(step.folder.path.parent.parent)),
        **({"resumed": True} if resumed else {}),
    }


def _scores(facts: Mapping[str, Any]) -> dict[str, float]:
    names = ("macs_ratio", "params_ratio", "search_top1", "trained_top1")
    return {f"schedule/{name}": facts[name] for name in names if facts[name] is not None}


def _rewind_file(run: Run, last: Run | None) -> Path | None:
    """Return the weights to rewind to, for the network that the next step cuts."""
    if run.config.schedule.rewind is None:
        return None
    return Path(run.config.schedule.rewind) if last is None else last.folder.path / REWOUND


def _rewind(step: Run, weights: Path) -> None:
    """Replace the weights of the pruned network by earlier ones of the same channels."""
    early = step.problem.fresh_model()
    load_into(early, load_state_dict(weights), str(weights))
    cut = step.problem.evaluator().builder.cut(step.widths_of(step.strategy()))
    model: nn.Module = slice_model(early, cut)
    for path in (step.folder.path / REWOUND, step.folder.pruned, step.folder.model):
        save_safetensors(model.state_dict(), path)


def _take_over(run: Run, last: Run) -> None:
    """Make the result of the last step that of the run."""
    strategy = last.strategy()
    run.folder.forget_pruned()
    run.folder.forget("search", "choose")
    strategy.save(run.folder.strategy)
    for source, target in ((last.folder.pruned, run.folder.pruned), (last.folder.model, run.folder.model)):
        atomic_write_bytes(target, source.read_bytes())
    macs, params = strategy.macs_ratio, strategy.params_ratio
    facts = last.folder.recorded("prune") or {}
    # its time is within that of this stage
    left_out = (MADE_OF, "stage_seconds", "resumed")
    run.record("prune", {name: value for name, value in facts.items() if name not in left_out})
    print(f"schedule: {macs:.4f} of the MACs, {params:.4f} of the parameters are left")


def _told(ratios: Ratios) -> str:
    return ", ".join(f"{kind} <= {ratio:g}" for kind, ratio in ratios.items())
