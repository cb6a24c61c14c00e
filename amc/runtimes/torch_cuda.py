"""PyTorch on a CUDA device, eager or as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amc.runtimes.protocol import Prepared, Shape

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class TorchCuda:
    """PyTorch on the current CUDA device: channels_last, cuDNN's algorithms chosen by trial, no TF32.

    CUDA events time the calls, which queue up on the device. Python bounds the eager calls of a small
    network; a CUDA graph leaves Python out.

    Attributes:
        name: Key in the registry.
        precision: A floating-point type of torch.
        graph: Whether the calls replay a CUDA graph.
    """

    name: str = "torch_cuda"
    precision: str = "float32"
    graph: bool = False

    def available(self) -> str | None:
        """Return None if PyTorch sees a CUDA device."""
        import torch

        return None if torch.cuda.is_available() else "PyTorch sees no CUDA device"

    def version(self) -> str:
        """Return the versions of PyTorch and of CUDA."""
        import torch

        return f"{torch.__version__}, CUDA {torch.version.cuda}"

    def prepare(self, model: nn.Module, input_shape: Shape, batch: int, threads: int) -> Prepared:
        """Move a copy of ``model`` to the device; ``threads`` is not used."""
        import torch

        from amc.runtimes.reference import laid_out, random_batch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        place = {"device": "cuda", "dtype": getattr(torch, self.precision)}
        network, images = laid_out(model, random_batch(input_shape, batch), **place)

        def eager() -> Tensor:
            with (
                torch.inference_mode(),
                torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False),
            ):
                logits: Tensor = network(images())
            return logits

        run = _captured(eager) if self.graph else eager
        run()
        torch.cuda.synchronize()
        return Prepared(
            run,
            clock=("cuda_event", EventClock()),
            device=torch.cuda.get_device_name(),
            peak_memory_bytes=torch.cuda.max_memory_allocated() - before,
        )


def _captured(eager: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Capture ``eager`` as a CUDA graph, after the warm-up on a side stream that capturing requires."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            eager()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = eager()

    def run() -> Tensor:
        graph.replay()
        return logits

    return run


class EventClock:
    """Seconds on the CUDA device's own clock; reading it waits for all work that was queued before."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._last: Any = None

    def __call__(self) -> float:
        """Return seconds since the first reading."""
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()
        if self._last is not None:  # add up short spans: float32 would lose the fraction of a long one
            self._seconds += self._last.elapsed_time(event) / 1e3
        self._last = event
        return self._seconds
