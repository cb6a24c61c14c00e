"""Stage ``prune``: the strategy is carried out, channels really gone, and the cut network is proved right."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from tqdm import tqdm

from amc.candidate.evaluator import Compressor
from amc.cost.counted import count_macs
from amc.cutting.surgery import surgery
from amc.errors import AmcError
from amc.models.checkpoint import save_safetensors
from amc.scoring.run import outputs

if TYPE_CHECKING:
    from experiments.run.run import Run

FOLDED_TOLERANCE = 1e-3
"""Allowed float32 difference between the searched network (batch norm folded) and the cut one, relative to
the largest output."""


def run(run: Run) -> dict[str, Any]:
    """Write ``pruned.safetensors`` (and ``model.safetensors``, until fine-tuning replaces it)."""
    strategy = run.strategy()
    widths = run.widths_of(strategy)
    strategy.save(run.folder / "strategy.json")
    with tqdm(
        total=len(run.splits.calibration), desc="prune", unit="image", disable=None, leave=False
    ) as bar:
        compressor = run.compressor(progress=bar.update)
    model, facts = cut(run, compressor, widths)
    run.forget_pruned()
    for name in ("pruned.safetensors", "model.safetensors"):
        save_safetensors(model.state_dict(), run.folder / name)
    print(f"prune: {facts['macs'] / 1e6:.2f}M MACs, {facts['params'] / 1e6:.3f}M parameters are left")
    return facts


def cut(run: Run, compressor: Compressor, widths: tuple[int, ...]) -> tuple[nn.Module, dict[str, Any]]:
    """Remove the channels by surgery, put the refitted weights in and compare with the sliced candidate.

    Raises:
        AmcError: the cut network is over the budget or differs from the one that the search judged.
    """
    sliced = compressor.pruned_model(widths).eval()
    model = surgery(run.dense, run.graph, compressor.kept(widths)).eval()
    model.load_state_dict(sliced.state_dict())
    images = run.splits.calibration.images[:64]
    found, expected = outputs(model, images, 64), outputs(sliced, images, 64)
    if not torch.equal(found, expected):
        raise AmcError("the cut network differs from the sliced one; please report this network")
    candidate = outputs(compressor.folded(widths, "float32"), images.to(run.device), 64)
    difference = float((found - candidate).abs().max() / found.abs().max())
    if not difference <= FOLDED_TOLERANCE:
        raise AmcError(
            f"the cut network differs from the searched one by {difference:.3g} of the largest output "
            f"(allowed {FOLDED_TOLERANCE:g})"
        )
    macs = count_macs(model, run.splits.input_shape)
    if macs != compressor.macs(widths):
        raise AmcError(f"fvcore counts {macs} MACs in the cut network, expected {compressor.macs(widths)}")
    cost = run.budget.cost(widths)
    if run.budget.enforced and cost > run.budget.limit:
        raise AmcError(
            f"the strategy costs {cost / run.budget.dense_cost:.4f} of the dense {run.budget.kind}, over "
            f"budget.{run.budget.kind}_ratio={run.budget.ratio:g}; it was made for another budget"
        )
    params = sum(parameter.numel() for parameter in model.parameters())
    refitted = _refit_in_sequence(run, compressor, model, widths) if run.config.prune.sequential else 0
    return model, {
        "macs": macs,
        "params": params,
        "macs_ratio": macs / compressor.macs(run.graph.dense_widths),
        "params_ratio": params / compressor.params(run.graph.dense_widths),
        "sliced_equals_cut": True,
        "folded_difference": difference,
        "sequentially_refitted_layers": refitted,
    }


def _refit_in_sequence(run: Run, compressor: Compressor, model: nn.Module, widths: tuple[int, ...]) -> int:
    """Refit the cut network layer by layer; one that cannot be traced keeps the weights of the search."""
    refined = copy.deepcopy(model)
    with tqdm(desc="refit", unit="operation", disable=None, leave=False) as bar:
        try:
            count = compressor.refit_in_sequence(
                refined,
                widths,
                run.splits.calibration.images,
                held_out=run.config.prune.held_out,
                activation_rounds=run.config.prune.activation_rounds,
                progress=bar.update,
            )
        except AmcError as error:
            print(f"prune: no sequential refit: {error}")
            return 0
    model.load_state_dict(refined.state_dict())
    return count
