"""Files that a deployment runtime reads, each checked against the eager model before it is written."""

from amc.export.exported import Exported, ExportSettings
from amc.export.formats import FORMATS, Format, get_format
from amc.export.onnx import export_onnx

__all__ = [
    "FORMATS",
    "ExportSettings",
    "Exported",
    "Format",
    "export_onnx",
    "get_format",
]
