"""The winner of a search as a network of its own: channels gone, proved equal to the candidate, refitted.

The refit in sequence is compared with what it started from, on images that it did not use. The better one is
kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amc.candidate.builder import CandidateBuilder
from amc.candidate.folding import FOLDED_TOLERANCE
from amc.candidate.settings import PruneSettings
from amc.cost.counted import count_macs
from amc.cutting.slicing import Cut
from amc.cutting.surgery import surgery
from amc.cutting.trial import difference_of
from amc.errors import AmcError, NotPrunableError, first_line, out_of_memory
from amc.refit.sequential import Way
from amc.scoring.precision import without_autocast
from amc.scoring.run import copied, in_eval, outputs
from amc.scoring.scores import likeness

PROOF_IMAGES = 64
COMPARED_IMAGES = 1024
"""Most images that decide whether the refit in sequence is kept; the score hardly changes with more."""


@dataclass(frozen=True)
class Comparison:
    """The network after the refit in sequence, compared with the looked-up weights before it.

    Attributes:
        layers: number of refitted layers.
        way: ``traced`` or ``recorded calls`` (``amc.refit.sequential``).
        likeness, likeness_before: score of the outputs (``amc.scoring.scores.likeness``) with and without
            the refit; None if the network gives NaN or infinity.
        images: number of images that were compared.
        why_recorded: the reason if the refit did not follow a symbolic trace.
    """

    layers: int
    way: Way
    likeness: float | None
    likeness_before: float | None
    images: int
    why_recorded: str | None = None

    @property
    def kept(self) -> bool:
        """Whether the refit is no worse."""
        if self.likeness is None or self.likeness_before is None:
            return self.likeness is not None
        return self.likeness >= self.likeness_before

    def __str__(self) -> str:
        return (
            f"refit in sequence {'kept' if self.kept else 'left out'}: "
            f"likeness {_figure(self.likeness)}, before {_figure(self.likeness_before)}"
        )


@dataclass(frozen=True)
class Pruned:
    """A pruned network and how it was made.

    Attributes:
        model: in eval mode on the CPU.
        macs, params: counted in the network itself.
        macs_ratio, params_ratio: relative to the builder's ``whole_costs``.
        folded_difference: largest difference from the candidate's outputs, relative to the largest output.
        comparison: the refit in sequence compared with the looked-up weights, if it ran.
        note: the reason if a refit in sequence was requested and is impossible.
        keeps_weights: whether layers that lost inputs were to keep their weights, without any refit.
    """

    model: nn.Module
    macs: int
    params: int
    macs_ratio: float
    params_ratio: float
    folded_difference: float
    comparison: Comparison | None = None
    note: str | None = None
    keeps_weights: bool = False

    @property
    def refitted_layers(self) -> int:
        """Layers with weights that were refitted in sequence."""
        return self.comparison.layers if self.comparison is not None and self.comparison.kept else 0

    @property
    def refit(self) -> str:
        """The outcome of the refit in sequence, in a few words."""
        if self.keeps_weights:
            return "none"
        if self.comparison is None:
            return "none in sequence" if self.note is None else f"impossible in sequence: {self.note}"
        return self.comparison.way if self.comparison.kept else f"left out, {self.comparison.way} was worse"


@without_autocast()
def prune(
    builder: CandidateBuilder,
    images: Tensor,
    widths: Sequence[int],
    settings: PruneSettings,
    *,
    unseen: Tensor | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Pruned:
    """Remove channels by surgery, put the refitted weights in, and refit layer by layer.

    The refit in sequence is kept if its outputs are at least as near to the dense network's on ``unseen``.
    Where the settings of ``builder`` refit no layer, there is none.

    The cut network must give the same bits as the sliced one, the outputs of the candidate that the search
    judged up to ``FOLDED_TOLERANCE``, and the multiply-adds of the closed form when fvcore counts it.

    Args:
        images: calibration images (N, C, H, W).
        widths: channels to keep, one number a group.
        unseen: images (N, C, H, W) that compare, the first ``COMPARED_IMAGES`` of them; by default the
            calibration images on which only the ridge is chosen, or all of them if there are none.
        progress: called with 1 after every step of the sequential refit.

    Raises:
        NotPrunableError: one of these checks fails.
    """
    cut = builder.cut(widths)
    sliced = in_eval(builder.pruned_model(cut))
    model = in_eval(surgery(builder.dense, builder.graph, cut))
    model.load_state_dict(sliced.state_dict())
    difference = _check_outputs(builder, cut, model, sliced, images[:PROOF_IMAGES])
    macs = count_macs(model, builder.graph.input_shape)
    if macs != builder.macs(widths):
        raise NotPrunableError(
            f"fvcore counts {macs} MACs in the cut network, expected {builder.macs(widths)}; a graph without "
            "amc.with_other_macs lacks those outside of the layers"
        )
    comparison, note = None, None
    if settings.sequential and builder.settings.refit:
        held_out = int(settings.held_out * len(images))
        compared = images[len(images) - held_out :] if unseen is None and held_out else unseen
        try:
            comparison = _refit_in_sequence(
                builder, cut, model, images, images if compared is None else compared, settings, progress
            )
        except AmcError as error:
            note = str(error)
    params = sum(parameter.numel() for parameter in model.parameters())
    whole_macs, whole_params = builder.whole_costs
    return Pruned(
        model,
        macs,
        params,
        macs / whole_macs,
        params / whole_params,
        difference,
        comparison,
        note,
        keeps_weights=not builder.settings.refit,
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
    difference = difference_of(found, judged)
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
    unseen: Tensor,
    settings: PruneSettings,
    progress: Callable[[int], Any] | None,
) -> Comparison:
    """Refit ``model`` in place, if that makes its outputs no less like the dense ones.

    Raises:
        AmcError: it cannot be refitted in sequence; it is as it was.
    """
    refined = copied(model)
    try:
        refitted = builder.refit_in_sequence(
            refined,
            cut,
            images,
            held_out=settings.held_out,
            activation_rounds=settings.activation_rounds,
            progress=progress,
        )
    except (ArithmeticError, LookupError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        if out_of_memory(error):
            raise
        raise AmcError(f"{type(model).__name__}: the refit failed: {first_line(error)}") from error
    compared = unseen[:COMPARED_IMAGES]
    wanted = _outputs(builder, copied(builder.dense), compared)
    before, after = (_likeness(builder, each, compared, wanted) for each in (model, refined))
    comparison = Comparison(
        refitted.layers, refitted.way, after, before, len(compared), refitted.why_recorded
    )
    if comparison.kept:
        model.load_state_dict(refined.state_dict())
    return comparison


def _outputs(builder: CandidateBuilder, network: nn.Module, images: Tensor) -> Tensor:
    """Return a network's outputs, computed on the builder's device; afterwards it is on the CPU."""
    try:
        return outputs(network.to(builder.device), images, builder.settings.batch_size)
    finally:
        network.cpu()


def _likeness(builder: CandidateBuilder, network: nn.Module, images: Tensor, wanted: Tensor) -> float | None:
    """Return the likeness of a network's outputs, or None if they are not finite."""
    try:
        found = likeness(_outputs(builder, network, images), wanted)
    except AmcError:
        return None
    return found if math.isfinite(found) else None


def _figure(score: float | None) -> str:
    return "not finite" if score is None else f"{score:.4g}"
