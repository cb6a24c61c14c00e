"""Racing: a candidate that is clearly worse than the best so far is not judged on all images.

Candidate and incumbent are compared image by image, in a random order that is drawn once. Let ``m`` be the
number of images that exactly one of them gets right, ``w`` of these the candidate. If the candidate were at
least as accurate on all images, ``w`` would be a draw without replacement from a population with at least as
many wins as losses, so by Hoeffding (1963, theorems 1 and 4)

    P(w <= m p) <= exp(-m KL(p || 1/2)),    p < 1/2.

The candidate is stopped where this is below its share of the risk: over all its stages, a candidate that is
no worse is stopped with at most the given probability.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from amc.candidate.evaluator import Compressor
from amc.result import Evaluation
from amc.scoring.run import logits
from amc.scoring.scores import likeness

SHARES = (0.1, 0.2, 0.4, 0.7)
"""Shares of the images after which a candidate may be stopped."""


@dataclass(frozen=True)
class _Scores:
    """What a candidate achieves on each image so far: (n,) float64 each."""

    correct: Tensor
    loss: Tensor
    divergence: Tensor

    def minus(self, other: _Scores) -> _Scores:
        """Difference to another candidate on the images that both have seen."""
        n = min(len(self.correct), len(other.correct))
        return _Scores(
            self.correct[:n] - other.correct[:n],
            self.loss[:n] - other.loss[:n],
            self.divergence[:n] - other.divergence[:n],
        )


class Racer:
    """Evaluates candidates as ``Compressor`` does, but stops those that are clearly worse.

    What is returned for a stopped candidate is the incumbent's result plus the mean difference on the images
    seen: always a lower accuracy than the incumbent's, so it can never be chosen. The first candidate, and
    every one that is not stopped, gets its full result.

    Args:
        compressor: the physics; it keeps what is remembered.
        risk: largest probability with which a candidate no worse than the incumbent is stopped, in (0, 0.5).
    """

    def __init__(self, compressor: Compressor, risk: float) -> None:
        self._compressor = compressor
        self._count = len(compressor.images)
        self._order = torch.randperm(self._count, generator=torch.Generator().manual_seed(0))
        # Images of the same order in memory: a stage is a slice of them.
        shuffled = compressor.images[self._order.to(compressor.images.device)]
        self._images = shuffled.contiguous(memory_format=torch.channels_last)
        stages = sorted({round(share * self._count) for share in SHARES} - {0, self._count})
        self._stages = (*stages, self._count)
        self._threshold = math.log(max(len(stages), 1) / risk)
        self._best: Evaluation | None = None
        self._best_scores: tuple[tuple[int, ...], _Scores] | None = None

    def macs(self, widths: Sequence[int]) -> int:
        """Multiply-adds at ``widths``."""
        return self._compressor.macs(widths)

    def evaluate(self, widths: Sequence[int]) -> Evaluation:
        """Return what these widths achieve, or what is known of them where they are stopped."""
        against = self._best.widths if self._best else None
        # A lost race first: a full result may be of a later time than the point that a resumed search is at.
        lost = self._compressor.known(widths, against) if against else None
        known = lost or self._compressor.known(widths)
        if known is None:
            known = self._race(tuple(widths))
            self._compressor.remember(known)
        whole = known.stopped_after is None
        if whole and (self._best is None or known.top1 > self._best.top1):
            self._best = known
        return known

    def _race(self, widths: tuple[int, ...]) -> Evaluation:
        self._compressor.prepare()
        incumbent = self._incumbent()
        start = time.process_time()
        model = self._compressor.candidate(widths)
        parts: list[Tensor] = []
        seen = 0
        for stage in self._stages:
            parts.append(logits(model, self._images[seen:stage], self._compressor.settings.batch_size))
            seen = stage
            if incumbent is None or stage == self._count:
                continue
            difference = self._scores(torch.cat(parts)).minus(incumbent)
            if clearly_worse(difference.correct, self._threshold):
                return self._stopped(widths, difference, torch.cat(parts), time.process_time() - start)
        outputs = torch.cat(parts)
        if incumbent is None:
            self._best_scores = (widths, self._scores(outputs))
        whole = torch.empty_like(outputs)
        whole[self._order] = outputs
        return self._compressor.judge(widths, whole, time.process_time() - start)

    def _incumbent(self) -> _Scores | None:
        """The incumbent's results image by image, computed once (again after an interruption)."""
        if self._best is None:
            return None
        widths = self._best.widths
        if self._best_scores is None or self._best_scores[0] != widths:
            model = self._compressor.candidate(widths)
            outputs = logits(model, self._images, self._compressor.settings.batch_size)
            self._best_scores = (widths, self._scores(outputs))
        return self._best_scores[1]

    def _scores(self, outputs: Tensor) -> _Scores:
        order = self._order[: len(outputs)]
        labels, dense = self._compressor.labels[order], self._compressor.dense_outputs[order]
        log = F.log_softmax(outputs.double(), 1)
        dense_log = F.log_softmax(dense.double(), 1)
        return _Scores(
            (outputs.argmax(1) == labels).double(),
            F.nll_loss(log, labels, reduction="none"),
            F.kl_div(log, dense_log, reduction="none", log_target=True).sum(1),
        )

    def _stopped(
        self, widths: tuple[int, ...], difference: _Scores, outputs: Tensor, seconds: float
    ) -> Evaluation:
        best, seen = self._best, len(outputs)
        assert best is not None
        dense = self._compressor.dense_outputs[self._order[:seen]]
        macs, params = self._compressor.macs(widths), self._compressor.params(widths)
        return replace(
            best,
            widths=widths,
            top1=best.top1 + 100 * float(difference.correct.mean()),
            loss=best.loss + float(difference.loss.mean()),
            agreement=best.agreement - float(difference.divergence.mean()),
            likeness=likeness(outputs, dense),
            macs=macs,
            params=params,
            macs_ratio=best.macs_ratio * macs / best.macs,
            params_ratio=best.params_ratio * params / best.params,
            seconds=seconds,
            stopped_after=seen,
            against=best.widths,
        )


def clearly_worse(difference: Tensor, threshold: float) -> bool:
    """Whether a candidate is worse than the incumbent beyond doubt.

    Args:
        difference: (n,) right answers of the candidate minus those of the incumbent: 1, 0 or -1 each.
        threshold: ``log(1 / risk)`` of this decision.
    """
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    if wins >= losses:
        return False
    share = wins / (wins + losses)
    divergence = math.log(2) + sum(p * math.log(p) for p in (share, 1 - share) if p > 0)
    return (wins + losses) * divergence > threshold
