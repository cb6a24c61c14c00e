"""The scores of candidates: each is built, run on ``search_val``, scored, and remembered."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from amc.candidate.builder import CandidateBuilder
from amc.candidate.memo import Memo
from amc.candidate.settings import CandidateSettings
from amc.data import LabelledImages
from amc.errors import AmcError, NotPrunableError, brief, out_of_memory
from amc.graph.groups import Graph
from amc.result import Evaluation
from amc.scoring.precision import dtype_of, without_autocast
from amc.scoring.run import outputs
from amc.scoring.scores import agreement, cross_entropy, likeness, top1


class Builder(Protocol):
    """Builds candidates of one network, by cutting channels (``amc.candidate``) or zeroing weights."""

    @property
    def dense_widths(self) -> tuple[int, ...]:
        """Widths of the reference network: the scores compare candidates with its outputs."""
        ...

    @property
    def whole_costs(self) -> tuple[float, float]:
        """Multiply-adds and parameters of the unpruned network, of which ratios are shares."""
        ...

    @property
    def classifies(self) -> bool:
        """Whether the network returns logits (N, classes)."""
        ...

    @property
    def device(self) -> torch.device:
        """The device that runs candidates."""
        ...

    @property
    def memory_format(self) -> torch.memory_format:
        """The format in which candidates take images."""
        ...

    def macs(self, widths: Sequence[int]) -> int:
        """Return the multiply-adds of one image at ``widths``."""
        ...

    def params(self, widths: Sequence[int]) -> int:
        """Return the number of parameters at ``widths``."""
        ...

    def prepare(self) -> None:
        """Compute the parts that all candidates share."""
        ...

    def network(self, widths: Sequence[int]) -> AbstractContextManager[nn.Module]:
        """Lend a candidate; the next call changes the same network."""
        ...


B = TypeVar("B", bound=Builder)


class Evaluator(Generic[B]):
    """Scores candidates of one network on held-out images; a known candidate is not run again.

    Args:
        builder: makes the candidates.
        search_val: held-out images (N, C, H, W) and labels (N,).
        batch_size: images per forward pass.
        precision: number format of the images, one of ``amc.scoring.precision.PRECISIONS``.
        labelled: False if the labels are placeholders: then accuracy and loss are None.
        memo: store of evaluations; by default one in memory.

    Attributes:
        builder: as given.
        labelled, batch_size, precision: as given.
        images: (N, C, H, W) on the builder's device.
        labels: (N,) int64 on the CPU.
    """

    def __init__(
        self,
        builder: B,
        search_val: LabelledImages,
        *,
        batch_size: int = 128,
        precision: str = "float32",
        labelled: bool = True,
        memo: Memo | None = None,
    ) -> None:
        self.builder = builder
        self.labelled = labelled
        self.batch_size = batch_size
        self.precision = precision
        self.images = search_val.images.to(
            builder.device, dtype_of(precision), memory_format=builder.memory_format
        )
        self.labels = search_val.labels.cpu()  # logits come back to the CPU
        self._memo = memo if memo is not None else Memo()
        self._dense_outputs: Tensor | None = None

    def macs(self, widths: Sequence[int]) -> int:
        """Return the multiply-adds of one image at ``widths``."""
        return self.builder.macs(widths)

    @property
    def dense(self) -> Evaluation:
        """Scores of the dense network."""
        return self.judge(self.builder.dense_widths, self.dense_outputs)

    @property
    def dense_outputs(self) -> Tensor:
        """Outputs of the dense network: (N, classes or columns), on the CPU; computed once."""
        if self._dense_outputs is None:
            self._dense_outputs = self.outputs(self.builder.dense_widths)
        return self._dense_outputs

    @without_autocast()
    def prepare(self) -> None:
        """Compute the parts that all evaluations share, so that no evaluation's time includes them."""
        self.dense_outputs.size()
        self.builder.prepare()

    def evaluate(self, widths: Sequence[int]) -> Evaluation:
        """Return the scores of a candidate; ``seconds`` covers building and running it."""
        known = self.known(widths)
        if known is not None:
            return known
        self.prepare()
        start = time.process_time()
        found = self.outputs(widths)
        evaluation = self.judge(widths, found, time.process_time() - start)
        self.remember(evaluation)
        return evaluation

    @without_autocast()
    def outputs(self, widths: Sequence[int], images: Tensor | None = None) -> Tensor:
        """Return the outputs of a candidate: (N, classes or columns), on the CPU.

        Args:
            widths: kept channels of every group.
            images: (N, C, H, W) in the builder's precision and on its device; by default ``self.images``.

        Raises:
            NotPrunableError: the candidate fails, although the dense network runs.
        """
        shown = self.images if images is None else images
        with self.builder.network(widths) as network:
            try:
                return outputs(network, shown, self.batch_size)
            except AmcError:
                raise
            except Exception as error:  # a user's network may raise anything
                if out_of_memory(error) or tuple(widths) == self.builder.dense_widths:
                    raise
                raise NotPrunableError(
                    f"a network of widths {list(widths)} fails: {brief(error)}; likely cause: the forward "
                    "pass needs a number of channels, or takes a branch that depends on values and was not "
                    "seen: compressor.exclude leaves groups whole"
                ) from error

    def judge(self, widths: Sequence[int], found: Tensor, seconds: float = 0.0) -> Evaluation:
        """Score outputs; a network without logits has neither top-1 accuracy nor loss.

        Args:
            widths: widths of the network that gave the outputs.
            found: its outputs on ``self.images``: (N, classes or columns), on the CPU.
            seconds: CPU time in seconds that computing them took.
        """
        builder, (whole_macs, whole_params) = self.builder, self.builder.whole_costs
        macs, params = builder.macs(widths), builder.params(widths)
        similar = likeness(found, self.dense_outputs)
        scored = builder.classifies and self.labelled
        return Evaluation(
            widths=tuple(int(width) for width in widths),
            top1=top1(found, self.labels) if scored else None,
            loss=cross_entropy(found, self.labels) if scored else None,
            agreement=agreement(found, self.dense_outputs) if builder.classifies else similar,
            likeness=similar,
            macs=macs,
            params=params,
            macs_ratio=macs / whole_macs,
            params_ratio=params / whole_params,
            seconds=seconds,
        )

    def known(self, widths: Sequence[int]) -> Evaluation | None:
        """Return the remembered evaluation of ``widths``, or None."""
        return self._memo.get(widths)

    def remember(self, evaluation: Evaluation) -> None:
        """Store an evaluation, which may come from another process (``amc.workers``)."""
        self._memo.put(evaluation)

    def on(self, images: LabelledImages, memo: Memo | None = None) -> Evaluator[B]:
        """Return an evaluator of the same candidates on other images; ``memo`` as for ``Evaluator``."""
        return Evaluator(
            self.builder,
            images,
            batch_size=self.batch_size,
            precision=self.precision,
            labelled=self.labelled,
            memo=memo,
        )

    def without_memory(self) -> Evaluator[B]:
        """Return a copy for another process; it stores nothing, because this process stores its results."""
        twin = copy.copy(self)
        twin._memo = Memo()
        return twin

    def close(self) -> None:
        """Close the file of remembered evaluations."""
        self._memo.close()


def channel_evaluator(
    model: nn.Module,
    graph: Graph,
    calibration: LabelledImages,
    search_val: LabelledImages,
    settings: CandidateSettings,
    *,
    labelled: bool = True,
    memo: Memo | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[int], Any] | None = None,
    whole: tuple[float, float] | None = None,
) -> Evaluator[CandidateBuilder]:
    """Return the evaluator of networks with fewer channels; see ``CandidateBuilder`` and ``Evaluator``.

    Raises:
        AmcError: the calibration images give NaN, or no gradient although the channel order needs one.
    """
    builder = CandidateBuilder(
        model, graph, calibration, settings, device=device, progress=progress, whole=whole
    )
    return Evaluator(
        builder,
        search_val,
        batch_size=settings.batch_size,
        precision=settings.precision,
        labelled=labelled,
        memo=memo,
    )
