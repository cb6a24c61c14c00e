"""Stage ``prune``: the strategy is carried out, channels really gone, and the cut network is proved right."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from amc.candidate.builder import CandidateBuilder
from amc.candidate.pruning import prune
from amc.candidate.settings import PruneSettings
from amc.errors import AmcError
from amc.models.state_files import save_safetensors
from amc.progress import progress

if TYPE_CHECKING:
    from experiments.run.run import Run


def run(run: Run) -> dict[str, Any]:
    """Write ``pruned.safetensors`` (and ``model.safetensors``, until fine-tuning replaces it)."""
    strategy = run.strategy()
    widths = run.widths_of(strategy)
    _check_budget(run, widths)
    with progress(len(run.problem.chosen.calibration), "prune", "image") as bar:
        builder = run.problem.evaluator(bar.update).builder
    model, facts = cut(run, builder, widths)
    run.folder.forget_pruned()
    run.counted(strategy).save(run.folder.strategy)
    for path in (run.folder.pruned, run.folder.model):
        save_safetensors(model.state_dict(), path)
    print(
        f"prune: {facts['macs'] / 1e6:.2f}M MACs, {facts['params'] / 1e6:.3f}M parameters are left; "
        f"refit: {facts['refit']}"
    )
    return facts


def cut(
    run: Run, builder: CandidateBuilder, widths: tuple[int, ...], label: str = "prune"
) -> tuple[nn.Module, dict[str, Any]]:
    """Prune the dense network to ``widths``; see ``amc.candidate.pruning.prune``.

    Args:
        label: what the printed line begins with.

    Raises:
        AmcError: the network is over the budget, or differs from the one that the search judged.
    """
    _check_budget(run, widths)
    splits, settings = run.problem.chosen, PruneSettings(**asdict(run.config.prune))
    with progress(None, "refit", "operation") as bar:
        pruned = prune(
            builder,
            splits.calibration.images,
            widths,
            settings,
            unseen=splits.search_val.images,
            progress=bar.update,
        )
    comparison = pruned.comparison
    if comparison is not None:
        print(f"{label}: {comparison}")
    return pruned.model, {
        "macs": pruned.macs,
        "params": pruned.params,
        "macs_ratio": pruned.macs_ratio,
        "params_ratio": pruned.params_ratio,
        "sliced_equals_cut": True,
        "folded_difference": pruned.folded_difference,
        "refit": pruned.refit,
        "sequentially_refitted_layers": pruned.refitted_layers,
        "sequential_refit": None if comparison is None else asdict(comparison) | {"kept": comparison.kept},
        "note": pruned.note,
    }


def _check_budget(run: Run, widths: tuple[int, ...]) -> None:
    """Refuse a network over the budget; a latency counts as stage ``verify`` has measured it, if it has.

    Raises:
        AmcError: a cost is over its limit.
    """
    budget, measured = run.budget, run.measured_latency(widths)
    if measured is not None:
        target = budget.of("latency")
        if budget.enforced and measured > target.ratio:
            raise AmcError(
                f"the strategy takes {measured:.4f} of the dense latency, as stage verify measured it, over "
                f"latency_ratio={target.ratio:g}: stages=[verify,prune] makes it smaller"
            )
        budget = replace(budget, limits=tuple(each for each in budget.limits if each.kind != "latency"))
    if not budget.allows(widths):
        raise AmcError(f"the strategy costs {budget.shortfall(widths)}; it was made for another budget")
