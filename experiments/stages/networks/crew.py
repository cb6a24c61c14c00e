"""The processes that torchrun has started: the first one runs the command, the others wait for its trainings.

They meet anew for every training. Until then the helpers look into the store that all share, so that a search
before a training may last as long as it likes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache

import torch.distributed as dist

from amc.training.parallel.group import Group
from experiments.config.torchrun import torchrun_rank

WAIT = timedelta(minutes=30)
"""Longest wait for another process in a training."""
POLL = 0.5
"""Seconds between two looks of an idle helper for a training."""
_TRAIN, _END = "train", "end"
"""What the first process tells the others: that it begins a training, or that there is no other."""


class Crew:
    """torchrun's processes; all of them count the trainings."""

    def __init__(self) -> None:
        self._store, self._rank, self._count = next(iter(dist.rendezvous("env://", timeout=WAIT)))
        self._training = 0

    @contextmanager
    def training(self) -> Iterator[Group]:
        """Call the helpers to a training, and be in its group during the block; for the first process."""
        self._tell(_TRAIN)
        with self._met() as group:
            yield group

    def trainings(self) -> Iterator[Group]:
        """Yield the group of each training of the first process, until there is no other; for the helpers."""
        while self._told() == _TRAIN:
            with self._met() as group:
                yield group

    def end(self) -> None:
        """Tell the helpers that there is no other training; for the first process."""
        self._tell(_END)

    def _tell(self, what: str) -> None:
        self._store.set(f"amc/{self._training}", what)

    def _told(self) -> str:
        key = f"amc/{self._training}"
        while not self._store.check([key]):
            time.sleep(POLL)
        return self._store.get(key).decode()

    @contextmanager
    def _met(self) -> Iterator[Group]:
        store = dist.PrefixStore(f"amc/{self._training}/group", self._store)
        self._training += 1
        dist.init_process_group(store=store, rank=self._rank, world_size=self._count, timeout=WAIT)
        try:
            yield Group(self._rank, self._count)
        finally:
            dist.destroy_process_group()


@cache
def crew() -> Crew:
    """Return the processes that torchrun has started; the store of the first one is there from now on."""
    return Crew()


def dismiss() -> None:
    """Let the helpers end, if this is torchrun's first process."""
    if torchrun_rank() == 0:
        crew().end()
