"""Other tools at a job's budget, trained as ours: ``... benchmark rivals OVERRIDE ... --folder DIR``.

The overrides describe network, data, budget (``budget.macs_ratio``) and training (``finetune.*``) as they do
for ``amc``, whose ``agent=... stages=[search,prune,finetune,evaluate]`` makes the rows to compare with. Other
limits, lists of budgets, and words on searches, candidates and further stages are refused: the tools would
ignore them. MACs are counted in the pruned network itself. Each tool's network keeps the weights that the
tool leaves it. The same command goes on where it was broken off: rows are in ``DIR/rows.jsonl``, trainings in
``DIR``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amc.candidate.settings import CandidateSettings
from amc.cost.counted import count_macs
from amc.digest import digest
from amc.errors import AmcError, SettingError
from amc.files import append_line
from amc.progress import progress
from amc.reading import read_lines
from amc.scoring.run import copied
from amc.seeds import mix
from experiments.benchmark.problem import config_of, open_trained, refuse_listed, refuse_words
from experiments.benchmark.rivals.fastnas import fastnas
from experiments.benchmark.rivals.pruners import global_magnitude, global_taylor, magnitude
from experiments.config.budgets import single_budget
from experiments.reproduce.problem import limit_words
from experiments.run.provenance import commit
from experiments.run.run import Run
from experiments.stages.networks.evaluate import answer_of, corrupted_top1
from experiments.stages.networks.finetune import finetune, top1_on

Rival = Callable[[Run, nn.Module, float], nn.Module]
"""(job, a copy of its dense network, share of the MACs that may stay) -> the pruned network."""
RIVALS: Mapping[str, Rival] = {
    "torch-pruning, L2": magnitude,
    "torch-pruning, global L2": global_magnitude,
    "torch-pruning, global Taylor": global_taylor,
    "FastNAS": fastnas,
}
_OURS = (
    *("agent", "strategy", "stages", "schedule", "choose", "prune", "reward", "workers"),
    *("budget.round_to", "budget.min_preserve_ratio", "budget.fit", "budget.kind"),
    *(f"compressor.{each.name}" for each in fields(CandidateSettings)),
    *("plan", "profile", "proxies", "quantize", "correlate", "export", "latency", "serve", "sparsify"),
)
"""Settings of our searches and of our pruning, and of other stages, which a tool would ignore."""
_GROUPS = ("compressor.exclude", "compressor.prune_coupled", "compressor.max_inputs")
"""Settings of the channels that stay whole, which torch-pruning is told, and FastNAS is not."""
_ROW = {"rival": str, "seed": int, "overrides": [str]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("overrides", nargs="*", help="of the configuration")
    parser.add_argument("--rivals", nargs="+", choices=list(RIVALS), default=list(RIVALS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, required=True, help="of the rows and the trainings")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Compare the tools; see the module's docstring.

    Raises:
        AmcError: an override is wrong, or a tool cannot reach the budget.
    """
    limit = _limit(options.overrides)
    if "FastNAS" in options.rivals:
        refuse_words(options.overrides, _GROUPS, "FastNAS cuts all layers; give --rivals without it")
    options.folder.mkdir(parents=True, exist_ok=True)
    log = options.folder / "rows.jsonl"
    known = _known(log, options.overrides)
    cells = [(name, seed) for seed in options.seeds for name in options.rivals]
    with progress(len(cells), "rivals", "row") as bar:
        for name, seed in cells:
            bar.set_postfix(rival=name, seed=seed, refresh=False)
            if (name, seed) not in known:
                with contextlib.redirect_stdout(sys.stderr):  # stdout is for the JSON
                    known[name, seed] = _row(name, seed, limit, options)
                append_line(log, json.dumps(known[name, seed]))
            bar.update()
    return {"rows": [known[cell] for cell in cells]}


def _limit(overrides: Sequence[str]) -> float:
    """Return the share of the MACs that may stay.

    Raises:
        SettingError: an override is wrong, or the tools would ignore it; or the budget limits other costs.
    """
    refuse_words(
        overrides, _OURS, "the tools search and cut by themselves, once, and are trained by finetune.*"
    )
    refuse_words(overrides, ["seed"], "give --seeds")
    config = config_of(*overrides)
    refuse_listed(config)
    limits = single_budget(config.budget)
    if [*limits] != ["macs"]:
        shown = ", ".join(f"{kind} <= {ratio:g}" for kind, ratio in limits.items())
        raise SettingError(
            f"the budget is {shown}, but the other tools prune to a share of the MACs alone: expected "
            "budget.macs_ratio=0.5 without another limit"
        )
    return limits["macs"]


def _known(log: Path, overrides: Sequence[str]) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the rows of earlier calls; tools that did not run then are tried again."""
    if not log.exists():
        return {}
    rows = read_lines(log, _ROW, "remove it to try all tools again")
    ran = [row for row in rows if row["overrides"] == overrides and "not_run" not in row]
    return {(row["rival"], row["seed"]): row for row in ran}


def _row(name: str, seed: int, limit: float, options: argparse.Namespace) -> dict[str, Any]:
    """Prune with one tool, train, and judge on the test images before and after."""
    about = {"rival": name, "seed": seed, "overrides": options.overrides, "commit": commit()}
    # one for each job, whose dense network and trainings are its own
    folder = options.folder / digest(*options.overrides)[:8] / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    job = open_trained(folder, *options.overrides, f"seed={seed}")
    about["threads"] = torch.get_num_threads()
    dense, shape = job.problem.dense, job.problem.splits.input_shape
    torch.manual_seed(mix(seed, 0, name))
    started = time.process_time()
    try:
        model = RIVALS[name](job, copied(dense), limit).eval()
    except (ImportError, AmcError) as error:
        return {**about, "not_run": str(error)}
    about["search_cpu_seconds"] = round(time.process_time() - started, 1)
    limits = limit_words("macs", f"{100 * limit:g}")
    about["job"] = [job.problem.spec.name, job.problem.splits.name, limits]
    about["macs_ratio"] = count_macs(model, shape) / count_macs(dense, shape)
    about["params_ratio"] = _weights(model) / _weights(dense)
    test = job.problem.splits.test()
    about |= {"dense_top1": top1_on(test, dense), "pruned_top1": top1_on(test, model)}
    before = _on_corrupted(job, model)
    checkpoint = folder / f"{name.replace(', ', '_').replace(' ', '_')}.ckpt.safetensors"
    trained = finetune(job, model, checkpoint, "finetune")
    about |= {name: trained[name] for name in ("epochs", "kept")}
    about["finetuned_top1"] = top1_on(test, model.eval())
    if job.config.evaluate.corruptions:
        about["corrupted"] = {"pruned": before, "finetuned": _on_corrupted(job, model)}
    job.problem.release()
    return about


def _on_corrupted(job: Run, model: nn.Module) -> dict[str, float]:
    """Return the accuracy in percent on each kind of corrupted test images."""
    answers = {"": answer_of(job, model)}
    return {kind: corrupted_top1(job, answers, kind)[""] for kind in job.config.evaluate.corruptions}


def _weights(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
