"""ExecuTorch with XNNPACK: what Android apps run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from amc.errors import AmcError
from amc.runtimes.protocol import Prepared, Shape, prepare_file
from amc.runtimes.reference import cause, eval_on_cpu, random_batch
from amc.third_party import missing, quiet

if TYPE_CHECKING:
    from torch import nn


def executorch_bytes(model: nn.Module, input_shape: tuple[int, int, int], batch: int = 1) -> bytes:
    """Return ``model`` as a .pte of fixed batch size, not compared with eager.

    Raises:
        AmcError: The model cannot be exported.
    """
    import torch

    try:
        with quiet():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            exported = torch.export.export(eval_on_cpu(model), (random_batch(input_shape, batch),))
            edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
            return bytes(edge.to_executorch().buffer)
    except Exception as error:  # its passes have no common base class of errors
        raise AmcError(
            f"{type(model).__name__} does not lower to ExecuTorch for an input of shape "
            f"{tuple(input_shape)}; likely cause: {cause(error)}"
        ) from error


def load_executorch(content: bytes, images: Any, threads: int) -> Callable[[], Any]:
    """Return one run of a .pte on a float32 array, which returns the logits.

    The thread pool is the process's own: networks that were loaded with another number of threads must not
    run again.
    """
    import torch

    inputs = [torch.from_numpy(images)]
    runtime = bindings()
    with quiet():
        # Exchanging the pool invalidates networks that are loaded: only when the size really changes.
        if runtime._threadpool_get_thread_count() != threads:
            runtime._unsafe_reset_threadpool(threads)
        program = runtime._load_for_executorch_from_buffer(content)
        program.forward(inputs)

    def run(_alive: bytes = content) -> Any:  # the program points into the content, and does not hold it
        return program.forward(inputs)[0]

    return run


def bindings() -> Any:
    """Import ExecuTorch's Python bindings, quietly."""
    with quiet():
        from executorch.extension.pybindings import portable_lib
    return portable_lib


@dataclass(frozen=True)
class ExecuTorch:
    """ExecuTorch's Python runtime on a .pte lowered to XNNPACK: float32, fixed batch size."""

    name: str = "executorch"
    precision: str = "float32"

    def available(self) -> str | None:
        """Return None if executorch and torchao, which it converts with, are installed."""
        return missing("executorch", "torchao")

    def version(self) -> str:
        """Return the version of ExecuTorch."""
        return metadata.version("executorch")

    def prepare(self, model: nn.Module, input_shape: Shape, batch: int, threads: int) -> Prepared:
        """Lower ``model`` and return one run of its ``forward``."""
        return prepare_file(self, model, input_shape, batch, threads)

    def convert(self, model: nn.Module, input_shape: Shape, batch: int) -> bytes:
        """Return the .pte file."""
        return executorch_bytes(model, input_shape, batch)

    def runtime(self) -> Any:
        """Import the Python bindings."""
        return bindings()

    def load(self, content: bytes, images: Any, threads: int) -> Callable[[], Any]:
        """Return one run of ``forward``; sets the size of the thread pool that the process shares."""
        return load_executorch(content, images, threads)
