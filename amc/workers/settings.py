"""Who evaluates candidates: this process, or workers."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from amc.errors import AmcError

KINDS = ("serial", "process", "ray")
"""``serial`` is no worker at all: the evaluator itself evaluates."""


@dataclass(frozen=True)
class WorkerSettings:
    """Who evaluates candidates.

    Attributes:
        kind: one of ``KINDS``.
        count: number of workers.
        threads: of each worker. The last bits of a sum can depend on the number of threads: workers give the
            bits of an evaluator in this process if both compute with one thread.
        address: of a running Ray cluster (``auto``, or ``HOST:PORT``); None starts Ray on this machine.
    """

    kind: str = "serial"
    count: int = 2
    threads: int = 1
    address: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise AmcError(f"workers.kind is {self.kind!r}; expected one of {', '.join(KINDS)}")
        for name in ("count", "threads"):
            if getattr(self, name) < 1:
                raise AmcError(f"workers.{name} is {getattr(self, name)}; expected at least 1")
        if self.address is not None and self.kind != "ray":
            raise AmcError(f"workers.address is {self.address!r}, which only workers=ray uses")
        if self.kind == "ray" and importlib.util.find_spec("ray") is None:
            raise AmcError("workers=ray needs Ray, which is not installed: pip install 'amc-search[ray]'")

    @property
    def concurrency(self) -> int:
        """How many candidates are evaluated at the same time."""
        return 1 if self.kind == "serial" else self.count
