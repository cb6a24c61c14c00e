"""Stage ``prune``: the strategy is carried out, channels really gone, and the cut network is proved right."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from tqdm import tqdm

from amc.budget.budget import Budget
from amc.candidate.builder import CandidateBuilder
from amc.cost.counted import count_macs
from amc.cutting.slicing import Cut
from amc.cutting.surgery import surgery
from amc.errors import AmcError
from amc.models.checkpoint import save_safetensors
from amc.scoring.run import outputs

if TYPE_CHECKING:
    from experiments.run.problem import Problem
    from experiments.run.run import Run

FOLDED_TOLERANCE = 1e-3
"""Allowed float32 difference between the searched network (batch norm folded) and the cut one, relative to
the largest output."""


def run(run: Run) -> dict[str, Any]:
    """Write ``pruned.safetensors`` (and ``model.safetensors``, until fine-tuning replaces it)."""
    strategy = run.strategy()
    widths = run.widths_of(strategy)
    strategy.save(run.folder.strategy)
    with tqdm(
        total=len(run.problem.splits.calibration), desc="prune", unit="image", disable=None, leave=False
    ) as bar:
        builder = run.problem.evaluator(bar.update).builder
    model, facts = cut(run, builder, widths)
    run.folder.forget_pruned()
    for path in (run.folder.pruned, run.folder.model):
        save_safetensors(model.state_dict(), path)
    print(f"prune: {facts['macs'] / 1e6:.2f}M MACs, {facts['params'] / 1e6:.3f}M parameters are left")
    return facts


def cut(run: Run, builder: CandidateBuilder, widths: tuple[int, ...]) -> tuple[nn.Module, dict[str, Any]]:
    """Remove the channels by surgery, put the refitted weights in and compare with the sliced candidate.

    Raises:
        AmcError: the cut network is over the budget or differs from the one that the search judged.
    """
    problem, chosen = run.problem, builder.cut(widths)
    sliced = builder.pruned_model(chosen).eval()
    model = surgery(problem.dense, problem.graph, chosen).eval()
    model.load_state_dict(sliced.state_dict())
    difference = _check_outputs(problem, builder, chosen, model, sliced)
    macs = count_macs(model, problem.splits.input_shape)
    if macs != builder.macs(widths):
        raise AmcError(f"fvcore counts {macs} MACs in the cut network, expected {builder.macs(widths)}")
    _check_budget(run.budget, widths)
    params = sum(parameter.numel() for parameter in model.parameters())
    refitted = _refit_in_sequence(run, builder, model, chosen) if run.config.prune.sequential else 0
    return model, {
        "macs": macs,
        "params": params,
        "macs_ratio": macs / builder.macs(builder.dense_widths),
        "params_ratio": params / builder.params(builder.dense_widths),
        "sliced_equals_cut": True,
        "folded_difference": difference,
        "sequentially_refitted_layers": refitted,
    }


def _check_outputs(
    problem: Problem, builder: CandidateBuilder, chosen: Cut, model: nn.Module, sliced: nn.Module
) -> float:
    """Compare the cut network with the sliced one (bit for bit) and with the searched one (folded).

    Returns:
        The difference from the searched network, relative to the largest output.
    """
    images = problem.splits.calibration.images[:64]
    found, expected = outputs(model, images, 64), outputs(sliced, images, 64)
    if not torch.equal(found, expected):
        raise AmcError("the cut network differs from the sliced one; please report this network")
    with builder.looked_up(chosen, "float32") as network:
        candidate = outputs(network, images.to(problem.device), 64)
    difference = float((found - candidate).abs().max() / found.abs().max())
    if not difference <= FOLDED_TOLERANCE:
        raise AmcError(
            f"the cut network differs from the searched one by {difference:.3g} of the largest output "
            f"(allowed {FOLDED_TOLERANCE:g})"
        )
    return difference


def _check_budget(budget: Budget, widths: tuple[int, ...]) -> None:
    cost = budget.cost(widths)
    if budget.enforced and cost > budget.limit:
        raise AmcError(
            f"the strategy costs {cost / budget.dense_cost:.4f} of the dense {budget.kind}, over "
            f"budget.{budget.kind}_ratio={budget.ratio:g}; it was made for another budget"
        )


def _refit_in_sequence(run: Run, builder: CandidateBuilder, model: nn.Module, chosen: Cut) -> int:
    """Refit the cut network layer by layer; one that cannot be traced keeps the weights of the search."""
    refined = copy.deepcopy(model)
    with tqdm(desc="refit", unit="operation", disable=None, leave=False) as bar:
        try:
            count = builder.refit_in_sequence(
                refined,
                chosen,
                run.problem.splits.calibration.images,
                held_out=run.config.prune.held_out,
                activation_rounds=run.config.prune.activation_rounds,
                progress=bar.update,
            )
        except AmcError as error:
            print(f"prune: no sequential refit: {error}")
            return 0
    model.load_state_dict(refined.state_dict())
    return count
