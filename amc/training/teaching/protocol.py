"""What a teacher is asked about, a network as a teacher, and the loss of distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.data.splits import WHOLE, Part
from amc.digest import network_digest
from amc.errors import AmcError
from amc.scoring.layout import memory_format_of
from amc.scoring.run import as_logits, copied, in_eval

NOT_FINITE = "likely causes: logarithms of 0, or numbers too large for its precision"
"""Why a teacher's logits may be NaN or infinite."""


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch; its images follow from the seed, ``view`` and ``index``.

    Attributes:
        view: number of the epoch whose images these are, from 0.
        index: number of the batch in its epoch, from 0.
        images: (N, C, H, W) float32, normalised and augmented.
        labels: (N,) int64.
        targets: the labels, or (N, classes) float32 shares where images are mixed.
        part: the part of the whole batch that these are.
    """

    view: int
    index: int
    images: Tensor
    labels: Tensor
    targets: Tensor
    part: Part = WHOLE


class Teacher(Protocol):
    """Gives logits for the images of a batch.

    Attributes:
        identity: hash of everything that its logits depend on, apart from the images.
    """

    identity: str

    def logits(self, batch: Batch, images: Tensor) -> Tensor:
        """Return logits (N, classes) float32 on the device of the images.

        Args:
            batch: the batch.
            images: its images (N, C, H, W) on the device that trains; they are not changed.
        """


class NetworkTeacher:
    """A network in evaluation mode, in the number format of the training.

    Args:
        network: the network; a copy is used, as another memory format would change the bits that the caller
            gets from it.
        device: where it runs.
        example: a few images (N, C, H, W).
        bf16: whether it runs in bfloat16.
        origin: see ``amc.digest.network_digest``.

    Attributes:
        network: the copy.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        example: Tensor,
        *,
        bf16: bool,
        origin: Sequence[str] = (),
    ) -> None:
        self.identity = network_digest(network, *origin)
        self.network = in_eval(copied(network).to(device))
        self._layout = memory_format_of(self.network, example)
        self.network.to(memory_format=self._layout)
        self._device, self._bf16 = device, bf16

    @torch.no_grad()
    def logits(self, batch: Batch, images: Tensor) -> Tensor:
        """Return the network's logits (N, classes) in float32; see ``Teacher``."""
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16):
            # A copy: a network may write into its input.
            given = images.clone().contiguous(memory_format=self._layout)
            return as_logits(self.network(given)).float()


def check_finite(found: Tensor, name: str) -> None:
    """Refuse logits (N, classes) of ``name`` that are not finite; those of a GPU make it wait.

    Raises:
        AmcError: they hold NaN or infinity.
    """
    if not found.isfinite().all():
        raise AmcError(
            f"{name} returned NaN or infinity for a batch of {len(found)} images: expected finite logits; "
            f"{NOT_FINITE}"
        )


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(teacher || student) in nats, the mean over the images.

    Args:
        student, teacher: logits (N, classes).
        temperature: T, by which both logits are divided.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015.
    """
    softened, target = (F.log_softmax(each.float() / temperature, 1) for each in (student, teacher))
    return temperature**2 * F.kl_div(softened, target, reduction="batchmean", log_target=True)
