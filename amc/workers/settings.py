"""Where candidates are evaluated: in this process, or by workers."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from amc.errors import SettingError, UnavailableError

KINDS = ("serial", "process", "ray")
"""``serial`` uses no workers: the evaluator evaluates in this process."""

LONGEST = 2_000_000
"""Largest timeout in seconds: a pipe is waited for by a system call that takes 31 bits of milliseconds."""


@dataclass(frozen=True)
class WorkerSettings:
    """Where candidates are evaluated.

    Attributes:
        kind: one of ``KINDS``.
        count: number of workers.
        threads: number of threads of each worker. The last bits of a sum can depend on it: workers give the
            same bits as an evaluator in this process if both compute with one thread.
        timeout: seconds after which a worker that gives no answer is replaced; at most ``LONGEST``.
        address: of a running Ray cluster, ``auto`` or ``HOST:PORT``; None starts Ray on this machine.

    Raises:
        SettingError: an impossible value.
        UnavailableError: Ray is not installed.
    """

    kind: str = "serial"
    count: int = 2
    threads: int = 1
    timeout: float = 3600.0
    address: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SettingError(f"workers.kind is {self.kind!r}; expected one of {', '.join(KINDS)}")
        for name in ("count", "threads"):
            if getattr(self, name) < 1:
                raise SettingError(f"workers.{name} is {getattr(self, name)}; expected at least 1")
        if not 0 < self.timeout <= LONGEST:
            raise SettingError(
                f"workers.timeout is {self.timeout:g}; expected seconds above 0, at most {LONGEST} (23 days)"
            )
        if self.address is not None and self.kind != "ray":
            raise SettingError(f"workers.address is {self.address!r}, which only workers=ray uses")
        if self.kind == "ray" and importlib.util.find_spec("ray") is None:
            raise UnavailableError(
                "workers=ray needs Ray, which is not installed: pip install 'amc-search[ray]'"
            )

    @property
    def concurrency(self) -> int:
        """Number of candidates that are evaluated at the same time."""
        return 1 if self.kind == "serial" else self.count
