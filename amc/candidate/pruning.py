"""The winner of a search as a network of its own: channels removed, compared with the candidate, refitted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amc.candidate.builder import CandidateBuilder
from amc.candidate.settings import PruneSettings
from amc.cost.counted import count_macs
from amc.cutting.slicing import Cut
from amc.cutting.surgery import surgery
from amc.errors import AmcError, NotPrunableError
from amc.scoring.run import outputs

FOLDED_TOLERANCE = 1e-3
"""Allowed float32 difference between the judged network (batch norm folded) and the cut one, relative to the
largest output."""
PROOF_IMAGES = 64


@dataclass(frozen=True)
class Pruned:
    """A pruned network and how it was made.

    Attributes:
        model: in eval mode on the CPU.
        macs, params: counted in the network itself.
        macs_ratio, params_ratio: relative to the dense network.
        folded_difference: largest difference from the candidate's outputs, relative to the largest output.
        refitted_layers: number of layers that were refitted in sequence.
        note: the reason if a sequential refit was requested and is impossible.
    """

    model: nn.Module
    macs: int
    params: int
    macs_ratio: float
    params_ratio: float
    folded_difference: float
    refitted_layers: int
    note: str | None = None


def prune(
    builder: CandidateBuilder,
    images: Tensor,
    widths: Sequence[int],
    settings: PruneSettings,
    *,
    progress: Callable[[int], Any] | None = None,
) -> Pruned:
    """Remove channels by surgery, put the refitted weights in, and refit layer by layer.

    The cut network must give the same bits as the sliced one, the outputs of the candidate that the search
    judged up to ``FOLDED_TOLERANCE``, and the multiply-adds of the closed form when fvcore counts it.

    Args:
        images: calibration images (N, C, H, W).
        widths: channels to keep, one number a group.
        progress: called with 1 after every operation of the sequential refit.

    Raises:
        NotPrunableError: one of these checks fails.
    """
    cut = builder.cut(widths)
    sliced = builder.pruned_model(cut).eval()
    model = surgery(builder.dense, builder.graph, cut).eval()
    model.load_state_dict(sliced.state_dict())
    difference = _check_outputs(builder, cut, model, sliced, images[:PROOF_IMAGES])
    macs = count_macs(model, builder.graph.input_shape)
    if macs != builder.macs(widths):
        raise NotPrunableError(
            f"fvcore counts {macs} MACs in the cut network, expected {builder.macs(widths)}"
        )
    refitted, note = 0, None
    if settings.sequential:
        refitted, note = _refit_in_sequence(builder, cut, model, images, settings, progress)
    params = sum(parameter.numel() for parameter in model.parameters())
    return Pruned(
        model,
        macs,
        params,
        macs / builder.macs(builder.dense_widths),
        params / builder.params(builder.dense_widths),
        difference,
        refitted,
        note,
    )


def _check_outputs(
    builder: CandidateBuilder, cut: Cut, model: nn.Module, sliced: nn.Module, images: Tensor
) -> float:
    """Compare the cut network with the sliced one (bit for bit) and with the judged one (folded)."""
    count = len(images)
    found, expected = outputs(model, images, count), outputs(sliced, images, count)
    if not torch.equal(found, expected):
        raise NotPrunableError("the cut network differs from the sliced one; please report this network")
    with builder.looked_up(cut, "float32") as network:
        judged = outputs(network, images.to(builder.device), count)
    difference = float((found - judged).abs().max() / found.abs().max())
    if not difference <= FOLDED_TOLERANCE:
        raise NotPrunableError(
            f"the cut network differs from the searched one by {difference:.3g} of the largest output "
            f"(allowed {FOLDED_TOLERANCE:g})"
        )
    return difference


def _refit_in_sequence(
    builder: CandidateBuilder,
    cut: Cut,
    model: nn.Module,
    images: Tensor,
    settings: PruneSettings,
    progress: Callable[[int], Any] | None,
) -> tuple[int, str | None]:
    """Refit ``model`` in place; one that cannot be traced keeps the looked-up weights, and says why."""
    refined = copy.deepcopy(model)
    try:
        count = builder.refit_in_sequence(
            refined,
            cut,
            images,
            held_out=settings.held_out,
            activation_rounds=settings.activation_rounds,
            progress=progress,
        )
    except AmcError as error:
        return 0, str(error)
    model.load_state_dict(refined.state_dict())
    return count, None
