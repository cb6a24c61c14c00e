"""The scores and costs of one candidate network."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Evaluation:
    """What one candidate network achieves on ``search_val``, without fine-tuning.

    Attributes:
        widths: kept channels of every group.
        top1: accuracy in percent; None without labels, or for a network that returns no logits.
        loss: cross-entropy in nats; None where there is no accuracy.
        agreement: minus the mean KL divergence (nats) from the dense network's prediction; 0 is perfect. For
            a network without logits it is ``likeness``.
        likeness: minus the squared error of the outputs, relative to the dense outputs' variance over images
            (``amc.scoring.scores.likeness``); 0 is perfect.
        macs, params: of the candidate; ``*_ratio`` relative to the dense network.
        seconds: CPU time that the evaluation took.
    """

    widths: tuple[int, ...]
    top1: float | None
    loss: float | None
    agreement: float
    likeness: float
    macs: int
    params: int
    macs_ratio: float
    params_ratio: float
    seconds: float = field(compare=False)
