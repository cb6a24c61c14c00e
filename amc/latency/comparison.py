"""Dense beside pruned on one or more runtimes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from amc.errors import SettingError
from amc.latency.portable.machine import cpu_model
from amc.latency.registry import get_backend
from amc.latency.remote.protocol import RemoteBackend
from amc.latency.timing.measure import Comparison, clock_for, measure_models, ratio
from amc.runtimes.protocol import Backend
from amc.scoring.precision import without_autocast

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class BackendResult:
    """One runtime's comparison, or why there is none.

    Attributes:
        backend: Name of the runtime.
        precision: Number format, such as ``float32``.
        input_shape: One image, (C, H, W).
        batch: Images per call.
        threads: Threads the runtime may use.
        clock: As in ``Measurement``; that of this machine's CPU if unavailable.
        device: Name of the device, such as the model of the CPU.
        version: Version of the runtime; None if unavailable.
        comparison: The measurement; None if unavailable.
        unavailable: Why the runtime could not be measured; None if it was.
        file_bytes: As in ``Measurement``, of ``dense`` and ``pruned``.
        peak_memory_bytes: Likewise.
        notes: Likewise.
        others: The dense network against others that were timed in the same rounds, by name.
    """

    backend: str
    precision: str
    input_shape: tuple[int, int, int]
    batch: int
    threads: int
    clock: str
    device: str
    version: str | None = None
    comparison: Comparison | None = None
    unavailable: str | None = None
    file_bytes: dict[str, int] = field(default_factory=dict)
    peak_memory_bytes: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    others: dict[str, Comparison] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as nested dictionaries that ``json.dump`` accepts."""
        return asdict(self)


@without_autocast()
def compare(
    dense_model: nn.Module,
    pruned_model: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    backends: str | Sequence[str | Backend | RemoteBackend] = ("torch", "onnxruntime"),
    batch: int = 1,
    threads: int = 1,
    rounds: int = 30,
    memory: bool = False,
    progress: Callable[[str], None] | None = None,
    others: Mapping[str, nn.Module] | None = None,
) -> list[BackendResult]:
    """Measure the dense against the pruned network on each backend.

    Args:
        dense_model: The network before pruning.
        pruned_model: The network after pruning.
        input_shape: One image, (C, H, W), the same for both.
        backends: Names in ``BACKENDS``, or backends; or one name.
        batch: Images per call.
        threads: Threads a runtime may use.
        rounds: Interleaved rounds per backend.
        memory: Whether fresh processes load the files, for their peak memory.
        progress: Called with each backend's name before its turn.
        others: Further networks, timed in the same rounds.

    Returns:
        A result per backend, in order; a backend that does not run here gives its reason instead of numbers.

    Raises:
        SettingError: A backend is unknown (checked before the first measurement), or a count is below 1.
        AmcError: A model does not convert, or its logits differ from those of eager PyTorch.
    """
    if batch < 1 or threads < 1:
        raise SettingError(f"batch is {batch} and threads is {threads}; expected at least 1 of each")
    given = (backends,) if isinstance(backends, str) else backends
    models = {"dense": dense_model, "pruned": pruned_model, **(others or {})}
    results = []
    for backend in [get_backend(entry) if isinstance(entry, str) else entry for entry in given]:
        if progress is not None:
            progress(backend.name)
        result = unmeasured(backend, backend.available(), input_shape, batch, threads)
        if result.unavailable is None:
            found = measure_models(
                models, input_shape, backend, batch=batch, threads=threads, rounds=rounds, memory=memory
            )
            result = replace(
                result,
                clock=found.clock,
                device=found.device,
                version=found.version,
                comparison=ratio(found.timings["dense"], found.timings["pruned"]),
                file_bytes=found.file_bytes,
                peak_memory_bytes=found.peak_memory_bytes,
                notes=found.notes,
                others={name: ratio(found.timings["dense"], found.timings[name]) for name in others or {}},
            )
        results.append(result)
    return results


def unmeasured(
    backend: Backend | RemoteBackend,
    reason: str | None,
    input_shape: tuple[int, int, int],
    batch: int,
    threads: int,
) -> BackendResult:
    """Return a result without figures, and why there are none."""
    return BackendResult(
        backend=backend.name,
        precision=backend.precision,
        input_shape=input_shape,
        batch=batch,
        threads=threads,
        clock=clock_for(threads)[0],
        device=cpu_model(),
        unavailable=reason,
    )
