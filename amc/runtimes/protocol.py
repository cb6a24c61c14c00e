"""What a runtime provides so that its latency can be measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import nn

Clock = Callable[[], float]
"""Seconds since any fixed instant, like ``time.process_time``."""


Shape = tuple[int, int, int]
"""One image: channels, height, width."""


TOLERANCES = {"float32": 1e-3, "float16": 5e-2}
"""Largest difference of the logits from eager's, relative to the largest logit, that is timed at a precision.

At other precisions the network may be rightly changed by more than any bound: only NaN is refused.
"""


@dataclass(frozen=True)
class Prepared:
    """A network that is loaded into a runtime, with its input.

    Attributes:
        run: One inference on the images of ``amc.runtimes.reference.random_batch``; returns the logits,
            (batch, classes), as an array or a tensor. On a GPU it may return early: reading the logits or
            ``clock`` waits.
        clock: Name and function of the clock that times such a run; None for that of the process.
        device: What runs it; None for this machine's CPU.
        peak_memory_bytes: Peak of the device memory, where the runtime tells it.
        content: The file that the runtime loads; None if it loads none.
    """

    run: Callable[[], Any]
    clock: tuple[str, Clock] | None = None
    device: str | None = None
    peak_memory_bytes: int | None = None
    content: bytes | None = None


class Backend(Protocol):
    """One runtime at one precision. Construction is cheap and imports nothing heavy."""

    @property
    def name(self) -> str:
        """Key in the registry, such as ``onnxruntime``."""
        ...

    @property
    def precision(self) -> str:
        """Number format of weights and activations, such as ``float32``."""
        ...

    def available(self) -> str | None:
        """Return None if this backend runs here, else the reason in one line."""
        ...

    def version(self) -> str:
        """Return the version of the runtime; called only where it is available."""
        ...

    def prepare(self, model: nn.Module, input_shape: Shape, batch: int, threads: int) -> Prepared:
        """Return ``model``, converted, compiled and loaded, for an input of (batch, C, H, W).

        ``model`` is left as it is. The caller restores torch's thread count, which this may change.
        """
        ...


@runtime_checkable
class FileBackend(Backend, Protocol):
    """A runtime that loads an exported file; a fresh process can do so, which makes its memory known."""

    def runtime(self) -> Any:
        """Import what ``load`` needs, quietly, and return it."""
        ...

    def convert(self, model: nn.Module, input_shape: Shape, batch: int) -> bytes:
        """Return the content of the file."""
        ...

    def load(self, content: bytes, images: Any, threads: int) -> Callable[[], Any]:
        """Return one inference of the file on a (batch, C, H, W) float32 array; it returns the logits."""
        ...


def prepare_file(
    backend: FileBackend, model: nn.Module, input_shape: Shape, batch: int, threads: int
) -> Prepared:
    """Convert and load; what ``Backend.prepare`` is for a runtime that loads files."""
    from amc.runtimes.reference import random_batch

    content = backend.convert(model, input_shape, batch)
    images = random_batch(input_shape, batch).numpy()
    return Prepared(backend.load(content, images, threads), content=content)
