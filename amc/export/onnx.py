"""ONNX export: one file, weights inside, a free batch size, outputs checked against eager PyTorch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amc.export.exported import PARITY_BATCH
from amc.files import atomic_write_bytes
from amc.runtimes.onnx_file import (
    INPUT_NAME,
    OUTPUT_NAME,
    checked_bytes,
    onnx_proto,
    onnxruntime_module,
    opset_of,
)
from amc.runtimes.reference import check_agreement, eager_logits, eval_on_cpu, random_batch

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn


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
    proto = onnx_proto(reference, input_shape, opset)
    _add_metadata(proto, name, widths or {})
    payload = checked_bytes(proto)
    images = random_batch(input_shape, PARITY_BATCH)
    eager = eager_logits(reference, images)
    difference = check_agreement(_logits(payload, images), eager, tolerance, "the ONNX model")
    target = Path(path)
    atomic_write_bytes(target, payload)
    return OnnxExport(target, difference, len(payload), opset_of(proto))


def _add_metadata(proto: onnx.ModelProto, name: str | None, widths: Mapping[str, str]) -> None:
    import onnx

    properties = {f"width.{layer}": str(width) for layer, width in widths.items()}
    if name is not None:
        properties["name"] = name
    onnx.helper.set_model_props(proto, properties)


def _logits(payload: bytes, images: torch.Tensor) -> Any:
    session = onnxruntime_module().InferenceSession(payload, providers=["CPUExecutionProvider"])
    (logits,) = session.run([OUTPUT_NAME], {INPUT_NAME: images.numpy()})
    return logits
