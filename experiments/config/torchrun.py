"""The processes that torchrun has started, as the environment tells them. Nothing here imports torch."""

from __future__ import annotations

import os


def torchrun_processes() -> int:
    """Return the number of processes that torchrun has started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def torchrun_rank() -> int | None:
    """Return this process's number if torchrun has started several, else None."""
    return int(os.environ["RANK"]) if torchrun_processes() > 1 else None
