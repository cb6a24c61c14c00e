"""The interface of a runtime whose latency can be measured, and the runtimes that load a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from amc.errors import brief
from amc.runtimes.reference import random_batch
from amc.third_party import missing

if TYPE_CHECKING:
    from torch import nn

Clock = Callable[[], float]
"""Seconds since any fixed instant, like ``time.process_time``."""


Shape = tuple[int, int, int]
"""One image: channels, height, width."""


Converter = Callable[["nn.Module", Shape, int], bytes]
"""(network, shape of one image, batch size) -> content of a file; raises ``AmcError`` if that fails."""


Kernels = Callable[["nn.Module"], "nn.Module"]
"""Returns a copy of a quantized network that rounds as the kernels of a runtime do."""


Loader = Callable[[bytes, Any, int], Callable[[], Any]]
"""(content of a file, (batch, C, H, W) float32 array, threads) -> one inference, which returns the logits."""


TOLERANCES = {"float32": 1e-3, "float16": 5e-2}
"""Largest difference of the logits from eager's, relative to the largest logit, that is timed at a precision.

No bound holds at other precisions, which may change the network by any amount: only NaN is refused there.
"""


@dataclass(frozen=True)
class Prepared:
    """A network that is loaded into a runtime, with its input.

    Attributes:
        run: One inference on the images of ``amc.runtimes.reference.random_batch``; returns the logits,
            (batch, classes), as an array or a tensor. On a GPU it may return early: reading the logits or
            ``clock`` waits.
        clock: Name and function of the clock that times such a run; None for that of the process.
        device: The device that runs it; None for this machine's CPU.
        peak_memory_bytes: Peak of the device memory, where the runtime reports it.
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

        Raises:
            AmcError: The model does not convert.
        """
        ...


@runtime_checkable
class FileBackend(Backend, Protocol):
    """A runtime that loads an exported file; a fresh process can do so, which makes its memory known."""

    def runtime(self) -> Any:
        """Import the modules that ``load`` needs, quietly, and return the main one."""
        ...

    def convert(self, model: nn.Module, input_shape: Shape, batch: int, /) -> bytes:
        """Return the content of the file."""
        ...

    def load(self, content: bytes, images: Any, threads: int, /) -> Callable[[], Any]:
        """Return one inference of the file on a (batch, C, H, W) float32 array; it returns the logits."""
        ...


@dataclass(frozen=True)
class FileRuntime:
    """A ``FileBackend`` made of functions, so that a runtime's own file holds only those.

    Attributes:
        name: Key in the registry.
        packages: Top-level packages that must be installed to convert and to load.
        version: Returns the version of the runtime.
        runtime: Imports the modules that ``load`` needs, quietly.
        convert: Returns the content of the file.
        load: Returns one inference of the file.
        precision: Number format of weights and activations.
        lacking: Returns what else is lacking here, in one line, or None; called once the packages are there.
        clock: See ``Prepared``.
        device: Returns the device's name, see ``Prepared``.
        methods: How a network may be quantized (``amc.quantization.settings.METHODS``) for this runtime, each
            with what is remarkable about it, or an empty string.
        kernels: How this runtime rounds; None if it rounds as the simulation does.
        load_fixed: Returns one inference on images that do not change, for timing, where ``load`` would
            convert them in every call; None if it does not.
    """

    name: str
    packages: tuple[str, ...]
    version: Callable[[], str]
    runtime: Callable[[], Any]
    convert: Converter
    load: Loader
    precision: str = "float32"
    lacking: Callable[[], str | None] = lambda: None
    clock: tuple[str, Clock] | None = None
    device: Callable[[], str | None] = lambda: None
    methods: Mapping[str, str] = field(default_factory=dict)
    kernels: Kernels | None = None
    load_fixed: Loader | None = None

    def available(self) -> str | None:
        """Return None if this runtime runs here, else the reason in one line."""
        try:
            return missing(*self.packages) or self.lacking()
        except Exception as error:  # a package that is installed and broken raises anything at its import
            return f"installed, but it fails: {brief(error)}"

    def prepare(self, model: nn.Module, input_shape: Shape, batch: int, threads: int) -> Prepared:
        """Convert ``model`` and load the file.

        Raises:
            AmcError: The model does not convert, or the file does not load.
        """
        content = self.convert(model, input_shape, batch)
        load = self.load_fixed or self.load
        run = load(content, random_batch(input_shape, batch).numpy(), threads)
        return Prepared(run, clock=self.clock, device=self.device(), content=content)
