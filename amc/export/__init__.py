"""Files that a deployment runtime reads, each checked against the eager model before it is written."""

from amc.export.onnx import OnnxExport, export_onnx, onnx_bytes

__all__ = ["OnnxExport", "export_onnx", "onnx_bytes"]
