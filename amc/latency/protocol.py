"""What a runtime provides so that its latency can be measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import nn


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

    def prepare(
        self, model: nn.Module, input_shape: tuple[int, int, int], batch: int, threads: int
    ) -> Callable[[], None]:
        """Return a callable that runs one inference of (batch, C, H, W) and returns when it has finished.

        All conversion, compilation and input creation happens here; ``model`` is left as it is. The caller
        restores torch's thread count, which this may change.
        """
        ...
