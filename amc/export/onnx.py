"""ONNX export: one file, weights inside, a free batch size, outputs checked against eager PyTorch."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amc.errors import AmcError
from amc.export.exported import PARITY_BATCH
from amc.export.reference import cause, check_agreement, eager_logits, eval_on_cpu, random_batch
from amc.files import atomic_write_bytes
from amc.third_party import quiet

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

INPUT_NAME = "input"
OUTPUT_NAME = "logits"


@dataclass(frozen=True)
class OnnxExport:
    """What was written, and how closely onnxruntime reproduces eager PyTorch from it.

    Attributes:
        path: The file.
        max_abs_difference: Largest ``|onnxruntime - eager|`` over the logits of a random batch of 3.
        bytes: Size of the file, weights included.
        opset: Version of the default ONNX operator set.
    """

    path: Path
    max_abs_difference: float
    bytes: int
    opset: int


def export_onnx(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    path: str | os.PathLike[str],
    *,
    opset: int | None = None,
    tolerance: float = 1e-4,
    name: str | None = None,
    widths: Mapping[str, str] | None = None,
) -> OnnxExport:
    """Write ``model`` as one self-contained ONNX file, once onnxruntime agrees with eager PyTorch.

    The graph has one input ``input`` of shape (batch, C, H, W) and one output ``logits``, both float32 with a
    free batch size. The model itself is left as it is: a copy in eval mode on the CPU is exported.

    Args:
        model: A network that maps one image batch to one tensor.
        input_shape: One image, (C, H, W).
        path: The file to write; it appears whole or not at all.
        opset: ONNX operator set version; the exporter's own default if None.
        tolerance: Largest allowed difference from eager, relative to the largest absolute logit.
        name: Stored as the metadata property ``name``.
        widths: Channel widths by layer, stored as metadata properties ``width.<layer>``.

    Raises:
        AmcError: The model cannot be exported at this opset, the outputs disagree, or the file
            cannot be written.
    """
    reference = eval_on_cpu(model)
    proto = _to_proto(reference, input_shape, opset)
    _add_metadata(proto, name, widths or {})
    payload = _checked_bytes(proto)
    images = random_batch(input_shape, PARITY_BATCH)
    eager = eager_logits(reference, images)
    difference = check_agreement(_logits(payload, images), eager, tolerance, "the ONNX model")
    target = Path(path)
    atomic_write_bytes(target, payload)
    return OnnxExport(target, difference, len(payload), _opset(proto))


def onnx_bytes(model: nn.Module, input_shape: tuple[int, int, int], *, opset: int | None = None) -> bytes:
    """Return ``model`` as a serialised ONNX graph with a free batch size, not compared with eager.

    ``input_shape`` is one image, (C, H, W). Runtimes that load from memory take this.
    """
    return _checked_bytes(_to_proto(eval_on_cpu(model), input_shape, opset))


def _to_proto(model: nn.Module, input_shape: tuple[int, int, int], opset: int | None) -> onnx.ModelProto:
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
    if opset is not None and _opset(proto) != opset:
        raise AmcError(
            f"the exporter wrote opset {_opset(proto)}, expected opset {opset}; "
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


def _opset(proto: onnx.ModelProto) -> int:
    return next(int(entry.version) for entry in proto.opset_import if entry.domain == "")


def _add_metadata(proto: onnx.ModelProto, name: str | None, widths: Mapping[str, str]) -> None:
    import onnx

    properties = {f"width.{layer}": str(width) for layer, width in widths.items()}
    if name is not None:
        properties["name"] = name
    onnx.helper.set_model_props(proto, properties)


def _checked_bytes(proto: onnx.ModelProto) -> bytes:
    import onnx

    payload: bytes = proto.SerializeToString(deterministic=True)
    onnx.checker.check_model(payload, full_check=True)
    return payload


def _logits(payload: bytes, images: torch.Tensor) -> Any:
    session = onnxruntime_module().InferenceSession(payload, providers=["CPUExecutionProvider"])
    (logits,) = session.run([OUTPUT_NAME], {INPUT_NAME: images.numpy()})
    return logits


def onnxruntime_module() -> Any:
    """Import onnxruntime with its reports to its maker over the network switched off, unless asked for."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime
