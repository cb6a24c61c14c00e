"""Quantized networks as files, and what runtimes compute from them on real images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from amc.errors import AmcError
from amc.files import atomic_write_bytes
from amc.runtimes.onnx_file import checked_bytes, onnx_graph
from amc.runtimes.protocol import FileRuntime, Shape
from amc.runtimes.reference import cause

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

AGREEMENT = 99.5
"""Percent of the images for which a file should give the class that the network gives."""
BATCH = 100
"""Images per call; dynamic ranges depend on it."""


@dataclass(frozen=True)
class Parity:
    """What a runtime computes from a file, beside the network that the file was made from.

    Attributes:
        runtime: its name.
        agreement: percent of the images with the same largest output.
        largest, mean: difference of the outputs, in size.
        top1: accuracy that the runtime itself reaches, in percent; None without labels.
        failure: why the runtime does not run the file; the figures are then None.
    """

    runtime: str
    agreement: float | None = None
    largest: float | None = None
    mean: float | None = None
    top1: float | None = None
    failure: str | None = None


def write_quantized(model: nn.Module, input_shape: Shape, path: Path, opset: int | None = None) -> bytes:
    """Write a quantized network as one ONNX file with the numbers of its description, and return its content.

    Raises:
        AmcError: it cannot be written.
    """
    content = checked_bytes(onnx_graph(model, input_shape, opset))
    atomic_write_bytes(path, content)
    return content


def parities(
    content: bytes,
    runtimes: Sequence[FileRuntime],
    images: NDArray[np.float32],
    expected: NDArray[np.float32],
    labels: NDArray[np.int64] | None,
) -> list[Parity]:
    """Run a file on real images in each runtime, and compare with what the network computes.

    Args:
        content: the file.
        runtimes: those that are available here.
        images: (N, C, H, W).
        expected: (N, classes), computed in batches of ``BATCH``.
        labels: (N,), or None.
    """
    found = []
    for runtime in runtimes:
        try:
            outputs = predictions(runtime, content, images)
        except Exception as error:  # runtimes have no common base class of errors
            found.append(Parity(runtime.name, failure=cause(error)))
            continue
        found.append(_compared(runtime.name, outputs, expected, labels))
    return found


def predictions(
    runtime: FileRuntime, content: bytes, images: NDArray[np.float32], threads: int = 1
) -> NDArray[np.float32]:
    """Return the outputs (N, classes) of a file for images (N, C, H, W), in batches of ``BATCH``."""
    import numpy as np

    parts = []
    whole = len(images) // BATCH * BATCH
    for start, end, size in ((0, whole, BATCH), (whole, len(images), len(images) - whole)):
        if start == end:
            continue
        buffer = np.empty((size, *images.shape[1:]), dtype=np.float32)
        buffer[:] = images[start : start + size]
        run = runtime.load(content, buffer, threads)
        for at in range(start, end, size):
            buffer[:] = images[at : at + size]  # runtimes read their input anew in every call
            parts.append(np.array(run()))
    return np.concatenate(parts)


def _compared(
    name: str, outputs: NDArray[np.float32], expected: NDArray[np.float32], labels: NDArray[np.int64] | None
) -> Parity:
    import numpy as np

    if outputs.shape != expected.shape or not np.isfinite(outputs).all():
        raise AmcError(f"{name} gives NaN or another shape for the quantized network")
    difference = np.abs(outputs - expected)
    classes = outputs.argmax(1)
    return Parity(
        name,
        agreement=100 * float((classes == expected.argmax(1)).mean()),
        largest=float(difference.max()),
        mean=float(difference.mean()),
        top1=None if labels is None else 100 * float((classes == labels).mean()),
    )
