"""A network as a serialised ONNX graph."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from amc.errors import AmcError
from amc.runtimes.reference import cause, eval_on_cpu, random_batch
from amc.third_party import quiet

if TYPE_CHECKING:
    import onnx
    from torch import nn

INPUT_NAME = "input"


OUTPUT_NAME = "logits"


def onnx_bytes(model: nn.Module, input_shape: tuple[int, int, int], *, opset: int | None = None) -> bytes:
    """Return ``model`` as a serialised ONNX graph with a free batch size, not compared with eager.

    ``input_shape`` is one image, (C, H, W). Runtimes that load from memory take this.
    """
    return checked_bytes(onnx_proto(eval_on_cpu(model), input_shape, opset))


def onnx_proto(model: nn.Module, input_shape: tuple[int, int, int], opset: int | None) -> onnx.ModelProto:
    """Trace a network in eval mode on the CPU, with a free batch size.

    Args:
        input_shape: One image, (C, H, W).
        opset: ONNX operator set version; the exporter's own default if None.

    Raises:
        AmcError: The network cannot be exported, or not at this opset.
    """
    import torch

    try:
        with quiet(), _registry_made_once():
            program = torch.onnx.export(
                model,
                (random_batch(input_shape, 2),),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                opset_version=opset,
                external_data=False,
                verbose=False,
            )
            assert program is not None  # the dynamo exporter always returns its program
            proto: onnx.ModelProto = program.model_proto
    except Exception as error:  # the exporter raises what its passes raise: no common base class
        raise AmcError(
            f"{type(model).__name__} does not export to ONNX for an input of shape {tuple(input_shape)}, "
            f"expected a traceable network on images of that shape; likely cause: {cause(error)}"
        ) from error
    if opset is not None and opset_of(proto) != opset:
        raise AmcError(
            f"the exporter wrote opset {opset_of(proto)}, expected opset {opset}; "
            "likely no conversion exists for one of the operators: ask for a newer opset"
        )
    return proto


@contextlib.contextmanager
def _registry_made_once() -> Iterator[None]:
    """Keep the exporter's table of operators between exports: making it is over half of a small export.

    It is torch's own and not changed by an export; a version of torch that has it elsewhere makes it anew.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        made = vars(ONNXRegistry)["from_torchlib"]
    except (ImportError, KeyError):
        yield
        return
    setattr(ONNXRegistry, "from_torchlib", staticmethod(_kept(ONNXRegistry.from_torchlib)))  # noqa: B010
    try:
        yield
    finally:
        setattr(ONNXRegistry, "from_torchlib", made)  # noqa: B010


@functools.cache
def _kept(made: Callable[..., Any]) -> Callable[..., Any]:
    return functools.cache(made)


def opset_of(proto: onnx.ModelProto) -> int:
    """Return the version of the default operator set."""
    return next(int(entry.version) for entry in proto.opset_import if entry.domain == "")


def checked_bytes(proto: onnx.ModelProto) -> bytes:
    """Serialise a graph, once ONNX's own checker accepts it."""
    import onnx

    payload: bytes = proto.SerializeToString(deterministic=True)
    onnx.checker.check_model(payload, full_check=True)
    return payload


def onnxruntime_module() -> Any:
    """Import onnxruntime with its reports to its maker over the network switched off, unless asked for."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime
