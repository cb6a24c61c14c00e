"""NVIDIA TensorRT's own Python runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amc.errors import AmcError
from amc.runtimes.protocol import Prepared, Shape
from amc.third_party import missing

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class TensorRT:
    """A TensorRT 10 engine built from the ONNX file for one batch size: float32, no TF32, CUDA events."""

    name: str = "tensorrt"
    precision: str = "float32"

    def available(self) -> str | None:
        """Return None if tensorrt is installed and there is a CUDA device."""
        absent = missing("tensorrt", "onnx", "onnxscript")
        if absent is not None:
            return f"{absent} (tensorrt comes from NVIDIA's package index)"
        import torch

        return None if torch.cuda.is_available() else "PyTorch sees no CUDA device"

    def version(self) -> str:
        """Return the version of TensorRT."""
        import tensorrt

        return str(tensorrt.__version__)

    def prepare(self, model: nn.Module, input_shape: Shape, batch: int, threads: int) -> Prepared:
        """Build an engine and return one run of it; ``threads`` is not used.

        Raises:
            AmcError: TensorRT cannot read the ONNX file, or builds no engine.
        """
        import tensorrt
        import torch

        from amc.runtimes.reference import random_batch
        from amc.runtimes.torch_cuda import EventClock

        images = random_batch(input_shape, batch).cuda()
        logger = tensorrt.Logger(tensorrt.Logger.ERROR)
        plan = _plan(tensorrt, logger, model, input_shape, batch)
        engine = tensorrt.Runtime(logger).deserialize_cuda_engine(plan)
        context = engine.create_execution_context()
        source, target = engine.get_tensor_name(0), engine.get_tensor_name(1)
        context.set_input_shape(source, tuple(images.shape))
        logits = torch.empty(tuple(context.get_tensor_shape(target)), device="cuda")
        context.set_tensor_address(source, images.data_ptr())
        context.set_tensor_address(target, logits.data_ptr())

        def run() -> Tensor:
            context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
            return logits

        clock = ("cuda_event", EventClock())
        return Prepared(run, content=plan, clock=clock, device=torch.cuda.get_device_name())


def _plan(tensorrt: Any, logger: Any, model: nn.Module, input_shape: Shape, batch: int) -> bytes:
    """Return the serialised engine for (batch, C, H, W)."""
    from amc.runtimes.onnx_file import INPUT_NAME, onnx_bytes

    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(onnx_bytes(model, input_shape)):
        raise AmcError(f"TensorRT cannot read {type(model).__name__}: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    config.clear_flag(tensorrt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT_NAME, *[(batch, *input_shape)] * 3)  # smallest, usual, largest
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise AmcError(f"TensorRT builds no engine for {type(model).__name__}; its own log says why")
    return bytes(plan)
