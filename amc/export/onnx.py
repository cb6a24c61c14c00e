"""ONNX export: one file, weights inside, a free batch size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from amc.export.exported import Exported, ExportSettings, write_checked
from amc.runtimes.onnx_file import checked_bytes, onnx_graph
from amc.runtimes.onnxruntime import ONNXRUNTIME
from amc.runtimes.protocol import Shape

if TYPE_CHECKING:
    import onnx
    from torch import nn


def export_onnx(model: nn.Module, input_shape: Shape, path: Path, settings: ExportSettings) -> Exported:
    """Write ``model`` as one self-contained ONNX file, once onnxruntime agrees with eager PyTorch.

    Args:
        model: A network that maps one image batch to one tensor; it is left as it is.
        input_shape: One image, (C, H, W).
        path: The file to write; it appears whole or not at all.
        settings: The opset, the tolerance and the metadata.

    Raises:
        AmcError: The model cannot be exported, the outputs disagree, or the file cannot be written.
        SettingError: The model cannot be exported at this opset.
    """
    graph = onnx_graph(model, input_shape, settings.opset)
    content, tolerance = described_bytes(graph, settings), settings.tolerance
    return write_checked(
        "onnx", content, ONNXRUNTIME.load, model, input_shape, path, batch=None, tolerance=tolerance
    )


def described_bytes(graph: onnx.ModelProto, settings: ExportSettings) -> bytes:
    """Serialise a graph with the metadata of ``settings`` as its properties, once ONNX accepts it."""
    import onnx

    properties = dict(settings.about) | {
        f"width.{layer}": str(width) for layer, width in settings.widths.items()
    }
    if settings.name is not None:
        properties["name"] = settings.name
    onnx.helper.set_model_props(graph, properties)
    return checked_bytes(graph)
