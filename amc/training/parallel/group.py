"""The processes of a training, and what they exchange."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from amc.data.splits import Part
from amc.errors import GOES_ON, AmcError, first_line
from amc.scoring.run import as_logits, evaluating
from amc.third_party import without_warnings
from amc.training.parallel.norms import synced_norms
from amc.training.parallel.sharding import is_sharded, kept_gradients


@dataclass(frozen=True)
class Group:
    """Process number ``rank`` of ``count``; with more than one, torch's default group is initialised."""

    rank: int = 0
    count: int = 1

    @property
    def part(self) -> Part:
        """The part of every batch that this process works on."""
        return Part(self.rank, self.count)

    @property
    def writes(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    @contextmanager
    def together(self, model: nn.Module, *, sync_norms: bool = True) -> Iterator[None]:
        """Share the statistics of batch norms during the block; the end of another process is one line.

        Args:
            model: the network in training.
            sync_norms: False leaves each process its own statistics.

        Raises:
            AmcError: another process has ended.
        """
        if self.count == 1:
            yield
            return
        try:
            with synced_norms(model) if sync_norms else nullcontext():
                yield
        except RuntimeError as error:
            if not is_lost(error):
                raise
            raise AmcError(
                f"another of the {self.count} training processes has ended ({first_line(error)[:120]}); "
                f"{GOES_ON} from the last epoch"
            ) from error

    def wrapped(self, model: nn.Module, example: Tensor, *, sync_norms: bool = True) -> Callable[..., Any]:
        """Return the call of ``model`` that averages gradients over the processes.

        Unless ``sync_norms``, each call begins with the buffers of the first process.

        Args:
            example: a few images (N, C, H, W), which tell whether all parameters take part in the outputs.
        """
        if self.count == 1 or is_sharded(model):
            return model
        device = next(model.parameters()).device
        places = [device.index or 0] if device.type == "cuda" else None
        with without_warnings():  # newer versions of torch have another name for the argument
            return nn.parallel.DistributedDataParallel(
                model,
                places,
                broadcast_buffers=not sync_norms,
                find_unused_parameters=_has_idle(model, example.to(device)),
            )

    def collecting(self, call: Callable[..., Any], *, last: bool) -> AbstractContextManager[Any]:
        """Return a context in which gradients stay in the process unless ``last``."""
        if self.count > 1 and is_sharded(call):
            return kept_gradients(call, last=last)
        if self.count == 1 or last or not isinstance(call, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return call.no_sync()

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes."""
        if self.count > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def first(self, value: Any) -> Any:
        """Return the value of the first process, on every process."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]

    def odd(self, value: Any) -> int | None:
        """Return the number of a process whose value is not that of the first one, on every process."""
        if self.count == 1:
            return None
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return next((rank for rank, own in enumerate(values) if own != values[0]), None)


ALONE = Group()


def _has_idle(model: nn.Module, images: Tensor) -> bool:
    """Whether a parameter that is trained takes no part in the outputs for ``images``."""
    trained = [each for each in model.parameters() if each.requires_grad]
    with evaluating(model), torch.enable_grad():
        outputs = as_logits(model(images.clone()))
        gradients = torch.autograd.grad(outputs.float().sum(), trained, allow_unused=True)
    return any(gradient is None for gradient in gradients)


def is_lost(error: RuntimeError) -> bool:
    """Whether a collective operation failed as another process is gone."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        word in text for word in ("gloo", "nccl", "connection", "peer", "timed out")
    )
