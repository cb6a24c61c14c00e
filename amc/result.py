"""The scores and costs of one candidate network."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Evaluation:
    """Scores of one candidate network on ``search_val``, without fine-tuning, and its costs.

    Attributes:
        widths: kept channels of every group.
        top1: accuracy in percent; None without labels, or for a network that returns no logits.
        loss: cross-entropy in nats; None whenever ``top1`` is None.
        agreement: minus the mean KL divergence (nats) from the dense network's prediction; 0 is perfect. For
            a network without logits it is ``likeness``.
        likeness: minus the squared error of the outputs, relative to the dense outputs' variance over images
            (``amc.scoring.scores.likeness``); 0 is perfect.
        macs: multiply-adds of the candidate for one image.
        params: number of its parameters.
        macs_ratio, params_ratio: the same relative to the original dense network, also where the candidate is
            cut from a pruned one.
        seconds: CPU time of the evaluation, in seconds.
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

    def at_costs_of(self, other: Evaluation) -> Evaluation:
        """Return the same scores at the costs of another network."""
        return replace(
            self,
            macs=other.macs,
            params=other.params,
            macs_ratio=other.macs_ratio,
            params_ratio=other.params_ratio,
        )
