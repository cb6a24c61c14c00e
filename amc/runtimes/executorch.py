"""ExecuTorch with XNNPACK, which Android apps run: a .pte of fixed batch size, float32 or int8."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import TYPE_CHECKING, Any

from amc.runtimes.protocol import FileRuntime
from amc.runtimes.reference import conversion, eval_on_cpu, random_batch, with_xnnpack_sums
from amc.third_party import quiet

if TYPE_CHECKING:
    from torch import nn


def convert(model: nn.Module, input_shape: tuple[int, int, int], batch: int) -> bytes:
    """Return ``model``, which may be quantized, as a .pte, not compared with eager.

    Raises:
        AmcError: The model cannot be exported.
    """
    import torch

    from amc.quantization.layers import is_quantized

    with conversion(model, input_shape, "lower to ExecuTorch"):
        import executorch.kernels.quantized  # noqa: F401  registers what no kernel of XNNPACK takes
        from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        network, parts = eval_on_cpu(model), list(ALL_PARTITIONER_CONFIGS)
        images = (random_batch(input_shape, batch),)
        if is_quantized(network):
            from amc.quantization.written.explicit import for_integer_kernels, with_own_values

            exported = with_own_values(
                torch.export.export(for_integer_kernels(network, rowwise=True), images)
            )
            # XNNPACK cannot pool integers by their average, yet the partitioner would let it.
            parts = [each for each in parts if each.target_name != "avg_pool2d.default"]
        else:
            exported = torch.export.export(network, images)
        edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner(parts)])
        return bytes(edge.to_executorch().buffer)


def load(content: bytes, images: Any, threads: int) -> Callable[[], Any]:
    """Return one run of a .pte on a (batch, C, H, W) float32 array, which returns the logits.

    All networks of the process share one thread pool. A network that was loaded with another number of
    threads must not run again.
    """
    import torch

    inputs = [torch.from_numpy(images)]
    runtime = _bindings()
    with quiet():
        # A new pool invalidates the networks that are loaded: make one only if the number of threads changes.
        if runtime._threadpool_get_thread_count() != threads:
            runtime._unsafe_reset_threadpool(threads)
        program = runtime._load_for_executorch_from_buffer(content)
        program.forward(inputs)

    def run(_alive: bytes = content) -> Any:  # the program points into the content but does not own it
        return program.forward(inputs)[0]

    return run


def _bindings() -> Any:
    with quiet():
        from executorch.extension.pybindings import portable_lib
    return portable_lib


EXECUTORCH = FileRuntime(
    name="executorch",
    packages=("executorch", "torchao"),  # it converts with torchao
    version=lambda: metadata.version("executorch"),
    runtime=_bindings,
    convert=convert,
    load=load,
    methods={
        "static_int8": "the input of a linear layer with float outputs, mostly the last, is rounded once more"
    },
    kernels=with_xnnpack_sums,
)
