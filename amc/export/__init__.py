"""Files that a deployment runtime reads, each checked against the eager model before it is written."""

from amc.export.exported import Exported
from amc.export.formats import FORMATS, ExportSettings, Format, get_format
from amc.export.onnx import OnnxExport, export_onnx
from amc.runtimes.onnx_file import onnx_bytes

__all__ = [
    "FORMATS",
    "ExportSettings",
    "Exported",
    "Format",
    "OnnxExport",
    "export_onnx",
    "get_format",
    "onnx_bytes",
]
