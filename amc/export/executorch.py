"""ExecuTorch program (.pte) for the XNNPACK CPU delegate, which is what runs on Android."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from amc.errors import AmcError
from amc.export.reference import cause, eval_on_cpu, random_batch
from amc.third_party import quiet

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
