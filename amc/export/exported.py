"""What an exported file is known by, and how a file of one piece is checked and written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amc.files import atomic_write_bytes
from amc.runtimes.reference import check_agreement, eager_logits, random_batch

if TYPE_CHECKING:
    from torch import nn

PARITY_BATCH = 3
"""Images that a file with a free batch size is checked on: not those of the traced example (2), so that a
batch size that was baked in shows up."""


@dataclass(frozen=True)
class Exported:
    """One exported file.

    Attributes:
        format: Key in ``amc.export.FORMATS``.
        path: The file, or the folder that a format calls a file.
        bytes: Its size, weights included.
        batch: Images per call; None if the batch size is free.
        precision: Number format of the weights.
        max_abs_difference: Largest ``|runtime - eager|`` over the logits; None where it cannot run here.
        note: Why it was not checked, or empty.
    """

    format: str
    path: Path
    bytes: int
    batch: int | None
    max_abs_difference: float | None
    precision: str = "float32"
    note: str = ""


def write_checked(
    format_name: str,
    content: bytes,
    load: Callable[[bytes, Any, int], Callable[[], Any]],
    model: nn.Module,
    input_shape: tuple[int, int, int],
    path: Path,
    *,
    batch: int | None,
    tolerance: float,
) -> Exported:
    """Write ``content`` to ``path`` once a run of it agrees with ``model`` in eager PyTorch.

    ``load`` takes the content, the images as an array, and the number of threads. A free batch size is None.
    """
    images = random_batch(input_shape, batch or PARITY_BATCH)
    found = load(content, images.numpy(), 1)()
    difference = check_agreement(found, eager_logits(model, images), tolerance, f"the {format_name} file")
    atomic_write_bytes(path, content)
    return Exported(format_name, path, len(content), batch, difference)
