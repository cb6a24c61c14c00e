"""Stage ``plan``: what the job would do, what it can reach, and how long it takes, before it starts."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from amc.budget.allocation import uniform_widths
from amc.budget.budget import rounded_up
from amc.candidate.evaluator import channel_evaluator
from amc.cost.closed_form import macs_cost
from amc.data import check_labels
from amc.progress import progress
from amc.quantization.settings import TRAINED
from amc.scoring.run import copied, in_eval
from experiments.config.agents import episodes_of
from experiments.config.budgets import Ratios, asked_budgets, scheduled_budgets
from experiments.report.text import aligned, duration
from experiments.stages.networks.fitting import epochs_to_go
from experiments.stages.networks.train import untrained

if TYPE_CHECKING:
    from experiments.config.schema import Config
    from experiments.run.run import Run

_USUAL = ("train", "search", "prune", "finetune")
"""Stages that are counted unless others are given."""
_STEPS = 2
"""Training steps that are timed; the first also prepares."""


def run(run: Run) -> dict[str, Any]:
    """Print the plan. Neither trained weights nor test images are needed, and nothing is trained or kept.

    An evaluation is timed on two networks within the budget, a training step on the dense network.

    Raises:
        SettingError: a budget cannot be met.
    """
    problem, config = run.problem, run.config
    reach = reachable(run)
    facts: dict[str, Any] = {
        "groups": len(problem.graph.groups),
        "left_whole": len(problem.graph.unprunable),
        "reachable": reach,
        "images": _images(run),
        "budgets": [dict(ratios) for ratios in asked_budgets(config.budget)],
    }
    print(f"plan: {problem.spec.name} on {problem.splits.name}, {in_short(run)}")
    print(aligned([["share of the dense network", "smallest", "largest"], *_rows(reach)]))
    print(f"images: {', '.join(f'{count} {name}' for name, count in facts['images'].items())}")
    facts |= _search_time(run)
    facts |= _training_time(run)
    facts["peak_memory_bytes"] = _peak_memory(problem.device)
    for line in _told(run, facts):
        print(line)
    return facts


def in_short(run: Run) -> str:
    """Return the plan of a search as one line: groups, budget and what is reachable, images, episodes."""
    images = run.problem.drawn
    told = {kind: f" ({rounded_up(least)} is reachable)" for kind, (least, _) in reachable(run).items()}
    budgets = [
        " and ".join(f"{kind} <= {ratio:g}{told.get(kind, '')}" for kind, ratio in ratios.items())
        for ratios in asked_budgets(run.config.budget)
    ]
    return (
        f"{len(run.problem.graph.groups)} groups, {' or '.join(budgets)}, {len(images.search_val)} images to "
        f"judge on, {len(images.calibration)} to refit on, {episodes_of(run.config.agent)} "
        f"episode{'s' if episodes_of(run.config.agent) != 1 else ''} of {run.config.agent.name}"
    )


def reachable(run: Run) -> dict[str, tuple[float, float]]:
    """Return for each cost the shares of the original network's that allowed networks can have: least, most.

    The latency is that of the run's model, in milliseconds, where there is one.
    """
    problem, space, original = run.problem, run.space, run.problem.original
    most = tuple(max(choices) for choices in space.choices)
    costs = {"macs": macs_cost(problem.graph), "params": problem.params}
    found = {
        name: _shares(cost, space.minimum, most, original.dense_cost(name)) for name, cost in costs.items()
    }
    if any("size" in ratios for ratios in asked_budgets(run.config.budget)):
        found["size"] = _shares(problem.size, space.minimum, most, original.float_size)
    if run.profiled:
        found["latency"] = _shares(problem.latency.model, space.minimum, most, original.dense_cost("latency"))
    return found


def _shares(cost: Any, least: Sequence[int], most: Sequence[int], dense: float) -> tuple[float, float]:
    return cost(least) / dense, cost(most) / dense


def _rows(reach: dict[str, tuple[float, float]]) -> Iterator[list[str]]:
    for name, (least, most) in reach.items():
        yield [name, rounded_up(least), f"{most:.4f}"]


def _images(run: Run) -> dict[str, int]:
    splits = run.problem.drawn
    order, batch = splits.order, run.config.data.batch_size
    found = {
        "to train on": splits.steps_per_epoch * batch if order is None else len(order.rows),
        "for calibration": len(splits.calibration),
        "to judge candidates on": len(splits.search_val),
    }
    return found | ({} if splits.unseen is None else {"that nothing else sees": len(splits.unseen)})


def _search_time(run: Run) -> dict[str, Any]:
    """Time the preparation of the evaluator, and two evaluations."""
    problem, images, start = run.problem, run.problem.drawn, time.perf_counter()
    model = problem.dense if problem.weights.exist else in_eval(problem.fresh_model())
    with (
        progress(len(images.calibration), "calibrate", "image") as bar,
        closing(
            channel_evaluator(
                model,
                problem.graph,
                images.calibration,
                images.search_val,
                problem.settings(),
                device=problem.device,
                progress=bar.update,
            )
        ) as evaluator,
    ):
        evaluator.builder.prepare()
        prepared = time.perf_counter() - start
        seconds = []
        for widths in _two_networks(run):
            begin = time.perf_counter()
            evaluator.evaluate(widths)
            seconds.append(time.perf_counter() - begin)
    episodes, at_once = episodes_of(run.config.agent), run.workers().concurrency
    each = sum(seconds) / len(seconds)
    searches = _searches(run.config)
    return {
        "preparation_seconds": round(prepared, 3),
        "evaluation_seconds": round(each, 4),
        "episodes": episodes,
        "searches": searches,
        "search_seconds": round((prepared + each * episodes * searches / at_once) if searches else 0.0, 3),
    }


def _two_networks(run: Run) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the uniform widths of the first budget and the smallest network.

    A latency that no profile predicts yet limits nothing here.
    """
    first = asked_budgets(run.config.budget)[0]
    known: Ratios = {kind: r for kind, r in first.items() if kind != "latency" or run.profiled}
    if not known:
        return run.space.dense, run.space.minimum
    return uniform_widths(run.space, run.budget_of(known)), run.space.minimum


def _training_time(run: Run) -> dict[str, Any]:
    """Time training steps of a copy of the dense network; nothing for networks without logits."""
    problem = run.problem
    if not problem.graph.classifies:
        return {}
    model = copied(problem.fresh_model()).to(problem.device).train()
    seconds = 0.0
    for _ in range(_STEPS):
        images, labels = next(iter(problem.splits.train_batches(0, run.config.seed)))
        start = time.perf_counter()
        _step(model, images.to(problem.device), labels.to(problem.device))
        seconds = time.perf_counter() - start
    steps = problem.splits.steps_per_epoch
    return {
        "training_step_seconds": round(seconds, 4),
        "training_seconds": round(seconds * steps * _dense_epochs(run), 3),
        "finetune_seconds": round(seconds * steps * _tuned_epochs(run.config), 3),
    }


def _dense_epochs(run: Run) -> int:
    """Return the epochs in which stage ``train`` would train: less those of the same training before.

    A folder that has got its dense network from elsewhere has no state of a training: without the stage being
    asked for it counts as trained.
    """
    problem, config, checkpoint = run.problem, run.config, run.folder.checkpoint("train")
    if "train" not in _counted(config) or problem.weights.given:
        return 0
    if problem.weights.exist and not checkpoint.exists() and not _asked(config):
        return 0
    return epochs_to_go(run, untrained(run), run.train_settings(config.train), checkpoint, config.train)


def _searches(config: Config) -> int:
    """Return the number of searches of the counted stages, under all budgets."""
    each = {
        "search": len(asked_budgets(config.budget)),
        "schedule": sum(_steps(config)),
        "sparsify": len(config.sparsify.densities),
    }
    return sum(each.get(name, 0) for name in _counted(config))


def _steps(config: Config) -> list[int]:
    """Return the number of steps of a schedule under each budget."""
    return [len(scheduled_budgets(config.schedule.ratios, one)) for one in asked_budgets(config.budget)]


def _tuned_epochs(config: Config) -> int:
    """Return the epochs in which the counted stages train pruned networks, under all budgets."""
    epochs, jobs = config.finetune.epochs, len(asked_budgets(config.budget))
    learned = config.quantize.epochs if config.quantize.method in TRAINED else 0
    each = {
        "choose": jobs * config.choose.candidates * config.choose.epochs,
        "schedule": sum(steps - 1 for steps in _steps(config)) * config.schedule.epochs,
        "finetune": jobs * epochs,
        "quantize": jobs * learned,
        "compare": jobs * 2 * epochs,
        "correlate": jobs * config.correlate.policies * epochs,
        "sparsify": len(config.sparsify.densities) * epochs,
    }
    return sum(each.get(name, 0) for name in _counted(config))


def _counted(config: Config) -> Sequence[str]:
    """Return the stages that are counted: those given to the plan, else those of the job, else the usual."""
    return _asked(config) or _USUAL


def _asked(config: Config) -> Sequence[str]:
    return config.plan.stages or [name for name in config.stages if name != "plan"]


def _step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    logits = model(images)
    check_labels(labels, logits.shape[1])
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    loss.item()  # waits for a GPU
    model.zero_grad()


def _peak_memory(device: torch.device) -> int:
    """Return the bytes that this process has used at most, on the GPU if it computes there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _told(run: Run, facts: dict[str, Any]) -> Iterator[str]:
    searches, episodes = facts["searches"], facts["episodes"]
    times = f"{searches} times " if searches > 1 else ""
    long = f"{times}{episodes} episodes and the preparation take about {duration(facts['search_seconds'])}"
    told = long if searches else "none of the stages searches"
    yield f"search: {duration(facts['evaluation_seconds'])} an evaluation, measured on two; {told}"
    if "finetune_seconds" in facts:
        train = facts["training_seconds"]
        first = f"training the dense network about {duration(train)}, " if train else ""
        yield (
            f"training: {first}fine-tuning about {duration(facts['finetune_seconds'])} "
            f"({_tuned_epochs(run.config)} epochs, a step timed on the dense network)"
        )
    yield f"memory: {facts['peak_memory_bytes'] / 2**30:.1f} GiB so far, on {run.problem.device}"
