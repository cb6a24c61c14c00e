"""Stage ``sparsify``: fine-grained pruning in rounds of search, pruning and fine-tuning, each one sparser.

AMC (section 4.2) prunes ResNet-50 in four such rounds; the agent decides the density of every layer (from
memory of the paper).
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from torch import nn

from amc.budget.budget import Budget, Limit, get_fit
from amc.budget.widths import WidthSpace
from amc.candidate.evaluator import Evaluator
from amc.candidate.memo import Memo
from amc.errors import Stopped
from amc.files import atomic_write_json
from amc.models.state_files import save_safetensors
from amc.progress import progress
from amc.scoring.run import copied
from amc.sparsity.training import zeros_held
from amc.sparsity.weights import (
    WHOLE,
    SparseBuilder,
    least_width,
    prunable_layers,
    sparsity_fingerprint,
    whole_layers,
)
from envs.observation import layer_features
from experiments.command.memory.remembered import goes_on
from experiments.config.agents import episodes_of
from experiments.config.arena import Arena
from experiments.config.searching import searched
from experiments.report import write_sparsity_html
from experiments.report.text import decimals
from experiments.run.episodes import EpisodeWriter, watching
from experiments.run.folder import RunFolder
from experiments.stages.networks.evaluate import test_top1
from experiments.stages.networks.finetune import finetune

if TYPE_CHECKING:
    from experiments.run.run import Run

VERSION = 1


def run(run: Run) -> dict[str, Any]:
    """Write ``sparse.safetensors`` (in the dense network's shapes), ``sparsity.json`` and ``sparsity.html``.

    Layers that ``compressor.exclude`` names, and producers of groups that it names, keep all weights. Each
    round has a folder such as ``density_0.50``, which remembers its evaluations and its training: a stopped
    stage resumes there.

    Raises:
        SettingError: a density cannot be reached.
        Stopped: the user stopped the stage.
    """
    model = copied(run.problem.dense)
    layers = prunable_layers(run.problem.graph, model)
    ceiling = (WHOLE,) * len(layers)
    if run.config.workers.kind != "serial":
        print("sparsify: networks are evaluated in this process; workers are for stage search")
    facts: dict[str, Any] = {"dense": {"top1": test_top1(run, run.problem.dense)}, "rounds": []}
    for density in run.config.sparsify.densities:
        folder = RunFolder(run.folder.path / f"density_{_named(density)}")
        folder.path.mkdir(exist_ok=True)
        with closing(_evaluator(run, model, ceiling, folder)) as evaluator:
            pruner = evaluator.builder
            ceiling, found = _search(run, evaluator, density, folder)
            model = pruner.sparse_model(ceiling)
            found |= {
                "target": density,
                "density": pruner.weights(ceiling) / pruner.weights((WHOLE,) * len(layers)),
            }
            found |= {"params_ratio": pruner.params(ceiling) / sum(p.numel() for p in model.parameters())}
            kept = pruner.kept(ceiling)
        found |= {"top1_pruned": test_top1(run, model), **_finetuned(run, model, pruner.names, folder)}
        found["layers"] = [
            {"name": layer.name, "weights": count, "kept": own}
            for layer, count, own in zip(layers, pruner.counts, kept, strict=True)
        ]
        facts["rounds"].append(found)
        after = f", {found['top1_finetuned']:.2f}% fine-tuned" if "top1_finetuned" in found else ""
        print(f"sparsify: {found['density']:.4f} of the weights: {found['top1_pruned']:.2f}% pruned{after}")
    save_safetensors(model.state_dict(), run.folder.sparse)
    about = {"model": run.problem.spec.to_json(), "agent": run.config.agent.name, "seed": run.config.seed}
    atomic_write_json(
        run.folder.sparsity.with_suffix(".json"), {"_version": VERSION, **about, "rounds": facts["rounds"]}
    )
    write_sparsity_html(
        run.folder.sparsity.with_suffix(".html"),
        {
            "model": run.problem.spec.name,
            "data": run.problem.splits.name,
            "seed": run.config.seed,
            "provenance": run.provenance(),
        },
        _table(facts),
        facts["rounds"],
    )
    return facts


def _named(density: float) -> str:
    """Return a density as part of a name, with two digits or as many as it has."""
    return max(f"{density:.2f}", f"{density:g}", key=len)


def _evaluator(
    run: Run, model: nn.Module, ceiling: tuple[int, ...], folder: RunFolder
) -> Evaluator[SparseBuilder]:
    problem, order = run.problem, run.config.sparsify.order
    settings = problem.settings()
    about = (order, ceiling, settings.batch_size, settings.precision, *problem.origin)
    fingerprint = sparsity_fingerprint(model, problem.chosen.fingerprint, *about)
    memo = Memo(folder.evaluations, fingerprint)
    run.looked_up |= len(memo) > 0
    builder = SparseBuilder(
        model,
        problem.graph,
        ceiling,
        problem.chosen.calibration.images,
        order=order,
        precision=settings.precision,
        device=problem.device,
    )
    return Evaluator(
        builder,
        problem.chosen.search_val,
        batch_size=settings.batch_size,
        precision=settings.precision,
        memo=memo,
    )


def _search(
    run: Run, evaluator: Evaluator[SparseBuilder], density: float, folder: RunFolder
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Let the agent decide the density of every layer; return the best widths and facts about the search."""
    pruner = evaluator.builder
    least = least_width(run.config.sparsify.min_density)
    excluded = whole_layers(run.problem.dense, pruner.layers, run.problem.excluded_layers)
    choices = tuple(
        (top,) if name in excluded else tuple(range(min(least, top), top + 1))
        for name, top in zip(pruner.names, pruner.dense_widths, strict=True)
    )
    space = WidthSpace(pruner.names, pruner.dense_widths, choices)
    whole = float(pruner.weights((WHOLE,) * len(choices)))
    limit = Limit("weights", pruner.weights, density, whole)
    budget = Budget((limit,), fit=get_fit(run.config.budget.fit))
    arena = Arena(
        evaluator,
        space,
        budget,
        run.reward,
        layer_features(run.problem.graph, pruner.names),
        curves=lambda: pruner.errors,
        dense=lambda: evaluator.dense,
        dense_macs=pruner.whole_costs[0],
    )
    with (
        EpisodeWriter(folder.search) as writer,
        progress(episodes_of(run.config.agent), f"density {density:.2f}", "episode", stays=True) as bar,
    ):
        watch = watching(writer, bar, run.tracker.log, name=folder.name)
        try:
            result = searched(run.config.agent, arena, run.config.seed, watch)
        except KeyboardInterrupt as stop:
            raise Stopped(
                f"sparsify stopped in its round of density {density:.2f} after {writer.count} episodes; "
                f"{goes_on(run.problem.folder.path)}"
            ) from stop
    best = result.best.info["evaluation"]
    return best.widths, {
        "episodes": result.episodes,
        "evaluations": writer.distinct,
        "top1_search": best.top1,
    }


def _finetuned(run: Run, model: nn.Module, names: tuple[str, ...], folder: RunFolder) -> dict[str, Any]:
    """Fine-tune the remaining weights while the zeros stay zero; do nothing if fine-tuning is off."""
    if run.config.finetune.epochs == 0:
        return {}
    with zeros_held(model, names):
        finetune(run, model, folder.checkpoint("finetune"), folder.name)
    return {"top1_finetuned": test_top1(run, model)}


def _table(facts: dict[str, Any]) -> list[list[str]]:
    names = ("top1_search", "top1_pruned", "top1_finetuned")
    rows = [
        ["weights left", "search", "test", "fine-tuned"],
        ["100%", "", decimals(facts["dense"]["top1"]), ""],
    ]
    return rows + [
        [f"{found['density']:.2%}", *(decimals(found.get(name)) for name in names)]
        for found in facts["rounds"]
    ]
