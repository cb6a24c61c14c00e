"""What one batch does to a network: its loss, the gradients and the update of the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from amc.data import check_labels
from amc.errors import AmcError
from amc.scoring.run import as_logits
from amc.training.augment import cross_entropy
from amc.training.averaging import Average
from amc.training.compiling import compiled
from amc.training.methods import undecayed
from amc.training.parallel.group import Group
from amc.training.parts import PartedBatch
from amc.training.settings import TrainSettings, learning_rate
from amc.training.teaching.hints import Hints
from amc.training.teaching.protocol import Batch, NetworkTeacher, Teacher, distillation_loss


class Learner:
    """Trains a network one batch at a time.

    Args:
        model: the network, where and how it is trained: on ``device``, in ``layout`` or in parts.
        settings: how to train.
        steps_per_epoch: batches of an epoch.
        example: a few images (N, C, H, W).
        device: where ``model`` is.
        layout: memory format of the images.
        bf16: compute in bfloat16 where autocast does.
        teacher: what is distilled.
        hints: the loss of the teacher's features.
        group: the processes that train together.

    Attributes:
        optimizer: the optimiser of ``model`` and of what ``hints`` train.
        average: the moving average of the weights, or None.

    Raises:
        AmcError: the network has no parameter to train.
        UnavailableError: ``torch.compile`` does not work here.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainSettings,
        *,
        steps_per_epoch: int,
        example: Tensor,
        device: torch.device,
        layout: torch.memory_format,
        bf16: bool,
        teacher: Teacher | None,
        hints: Hints | None,
        group: Group,
    ) -> None:
        self._model, self._settings, self._steps_per_epoch = model, settings, steps_per_epoch
        self._device, self._layout, self._bf16 = device, layout, bf16
        self._teacher, self._hints, self._group = teacher, hints, group
        self._not_finite = torch.zeros((), dtype=torch.bool, device=device)
        groups = parameter_groups(model, settings.weight_decay)
        if not groups:
            raise AmcError("the network has no parameter to train, expected at least one with requires_grad")
        if hints is not None and settings.hint_maps == "trained":
            groups.append({"params": list(hints.parameters()), "weight_decay": 0.0})
        self.optimizer = torch.optim.SGD(
            groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov
        )
        self._parts = PartedBatch(model, groups, device)
        self.average = Average(model, settings.ema) if settings.ema else None
        self._parallel = self._call = group.wrapped(model, example, sync_norms=settings.sync_norms)
        if settings.compile:
            self._call = compiled(self._call)

    def step(self, number: int, batch: Batch) -> Tensor:
        """Learn from batch ``number`` (from 0) of the training; return its loss (a scalar on the device).

        Raises:
            AmcError: the network returns no logits or too few for the labels, or has other classes than the
                teacher; a process has no image of the batch; or memory does not suffice.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(number, self._settings, self._steps_per_epoch)
        first, last, count = self._turn(batch.index)
        with self._group.collecting(self._parallel, last=last):
            loss = self._gradients(batch, count, keep=not first)
            if last:
                self._update()
        return loss

    def _turn(self, index: int) -> tuple[bool, bool, int]:
        """Return whether a batch is the first and the last before an update, and their number.

        The last update of an epoch may have fewer batches than the others.
        """
        position = index % self._settings.accumulate
        count = min(self._settings.accumulate, self._steps_per_epoch - (index - position))
        return position == 0, position == count - 1, count

    def _gradients(self, batch: Batch, count: int, *, keep: bool) -> Tensor:
        """Put the gradients of one of an update's ``count`` batches into the parameters; return its loss."""
        images = len(batch.labels)
        if self._group.count == 1:
            return self._parts.backward(images, partial(self._backward, batch, count), keep=keep)
        if not keep:
            self.optimizer.zero_grad(set_to_none=True)
        return self._backward(batch, count, slice(0, images), self._share(images))

    def _share(self, own: int) -> float:
        """Return the factor that makes the mean of the processes' losses that of the whole batch.

        Raises:
            AmcError: a process has no image of it; on every process.
        """
        processes = self._group.count
        sums = self._group.sum(torch.tensor([float(own), float(own == 0)], device=self._device))
        whole, without = sums.tolist()
        if without:
            raise AmcError(
                f"a batch of {whole:.0f} images leaves {without:.0f} of the {processes} training processes "
                f"without one: expected batches of at least {processes} images; leave a short last batch "
                "out, or train with fewer processes"
            )
        return float(own * processes / whole)

    def taught_finite(self) -> bool:
        """Whether the teacher has returned finite logits alone, on all processes; each has to call this."""
        if self._teacher is None:
            return True
        return not self._group.sum(self._not_finite.float())

    def _backward(self, batch: Batch, count: int, own: slice, share: float) -> Tensor:
        """Add the gradients of some images of a batch.

        Args:
            count: number of batches of an update.
            own: the images of the batch.
            share: what their mean loss counts for.

        Returns:
            Their loss times ``share`` (a scalar, detached), on the device.
        """
        part = batch
        if own != slice(0, len(batch.labels)):
            part = replace(
                batch, images=batch.images[own], labels=batch.labels[own], targets=batch.targets[own]
            )
        images = part.images.to(self._device, memory_format=self._layout)
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16):
            # with a copy where the teacher needs the images too: a network may work in place
            given = images if self._teacher is None else images.clone()
            output = as_logits(self._call(given)).float()
        check_labels(part.labels, output.shape[1])
        loss = share * self._loss(output, part, lambda: self._taught(batch, part, own, images))
        (loss if count == 1 else loss / count).backward()
        return loss.detach()

    def _taught(self, batch: Batch, part: Batch, own: slice, images: Tensor) -> Tensor:
        """Return the teacher's logits for ``part``, the images ``own`` of ``batch``."""
        assert self._teacher is not None
        if part is batch or isinstance(self._teacher, NetworkTeacher):
            return self._teacher.logits(part, images)
        return self._teacher.logits(batch, batch.images.to(self._device, memory_format=self._layout))[own]

    def _loss(self, output: Tensor, batch: Batch, taught: Callable[[], Tensor]) -> Tensor:
        """Return the loss of a batch; ``taught`` gives the teacher's logits for it."""
        smoothing, weight = self._settings.label_smoothing, self._settings.distill_weight
        loss = cross_entropy(output, batch.targets.to(self._device), smoothing)
        if self._teacher is None:
            return loss
        target = taught()
        if weight > 0:
            self._not_finite |= ~target.isfinite().all()  # a GPU need not wait for it
            if target.shape != output.shape:
                raise AmcError(
                    f"the teacher has {target.shape[1]} outputs, the network {output.shape[1]}: expected the "
                    "same classes"
                )
            distilled = distillation_loss(output, target, self._settings.distill_temperature)
            loss = (1 - weight) * loss + weight * distilled
        if self._hints is not None:
            loss = loss + self._settings.hint_weight * self._hints.loss()
        return loss

    def _update(self) -> None:
        """Move the weights, and their average."""
        if self._hints is not None and self._group.count > 1:
            for weights in self._hints.parameters():
                if weights.grad is not None:
                    weights.grad = self._group.sum(weights.grad) / self._group.count
        if self._settings.grad_clip is not None:
            nn.utils.clip_grad_norm_(self._model.parameters(), self._settings.grad_clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Return the optimiser's groups: ``weight_decay`` for weights, none for norms, biases and vectors."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    free = {id(parameter) for parameter in undecayed(model)}
    groups = (
        ([parameter for parameter in trained if id(parameter) not in free], weight_decay),
        ([parameter for parameter in trained if id(parameter) in free], 0.0),
    )
    return [{"params": parameters, "weight_decay": decay} for parameters, decay in groups if parameters]
