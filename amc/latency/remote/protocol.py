"""The interface of a runtime on another device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from amc.runtimes.protocol import Backend, Shape

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class RemoteTimes:
    """The measurement of another device.

    Attributes:
        samples_ms: Milliseconds per call of each round, by name of the network; interleaved.
        repeats: Calls per round, averaged over.
        clock: Name of the clock.
        device: Name of the device.
        version: Version of the runtime there.
        file_bytes: Size of the file that the runtime loads, by name.
        notes: Facts about the device's clock and temperature, a line each.
    """

    samples_ms: Mapping[str, Sequence[float]]
    repeats: int
    clock: str
    device: str
    version: str
    file_bytes: Mapping[str, int]
    notes: tuple[str, ...] = ()


def setup_of(backend: Backend | RemoteBackend) -> str:
    """Return what the latency depends on besides device, runtime, precision, threads and batch.

    It is the text ``setup`` of a backend, or empty if it has none.
    """
    setup = getattr(backend, "setup", "")
    return setup if isinstance(setup, str) else ""


@runtime_checkable
class RemoteBackend(Protocol):
    """A runtime on another device, which runs all rounds by itself."""

    @property
    def name(self) -> str:
        """Key in the registry, such as ``adb``."""
        ...

    @property
    def precision(self) -> str:
        """Number format of weights and activations, such as ``float32``."""
        ...

    def available(self) -> str | None:
        """Return None if the device answers and can measure, else the reason in one line."""
        ...

    def times_ms(
        self,
        models: Mapping[str, nn.Module],
        input_shapes: Mapping[str, Shape],
        *,
        batch: int,
        threads: int,
        rounds: int,
    ) -> RemoteTimes:
        """Convert the models, check them, and time them in the same rounds.

        Raises:
            AmcError: A model does not convert, its logits differ from eager's, or the device fails.
        """
        ...
