"""The file formats that a network can be exported to, by name."""

from __future__ import annotations

from dataclasses import dataclass

from amc.export import torch_export
from amc.export.coreml import export_coreml
from amc.export.exported import Writer, file_writer
from amc.export.metadata import with_metadata
from amc.export.onnx import export_onnx
from amc.export.openvino import export_openvino
from amc.registry import Registry
from amc.runtimes.executorch import EXECUTORCH
from amc.runtimes.litert import LITERT
from amc.runtimes.onnxruntime import ONNXRUNTIME
from amc.runtimes.openvino import OPENVINO
from amc.third_party import missing


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        file: Name of the file in the ``exports`` folder.
        packages: Packages that must be installed.
        write: Converts, checks and writes.
    """

    file: str
    packages: tuple[str, ...]
    write: Writer

    def unavailable(self) -> str | None:
        """Return None if it can be written here, else the reason in one line."""
        return missing(*self.packages)


FORMATS: Registry[Format] = Registry(
    "export format",
    {
        "onnx": Format("model.onnx", ONNXRUNTIME.packages, export_onnx),
        "executorch": Format(
            "model.pte",
            EXECUTORCH.packages,
            file_writer("executorch", EXECUTORCH.convert, EXECUTORCH.load, batch=1),
        ),
        "litert": Format(
            "model.tflite",
            LITERT.packages,
            file_writer("litert", LITERT.convert, LITERT.load, batch=1, described=with_metadata),
        ),
        "openvino": Format("model.xml", OPENVINO.packages, export_openvino),
        "coreml": Format("model.mlpackage", ("coremltools",), export_coreml),
        "torch_export": Format(
            "model.pt2", (), file_writer("torch_export", torch_export.convert, torch_export.load, batch=None)
        ),
    },
    own=lambda made: made if isinstance(made, Format) else None,
)
"""A new format is one row, or a ``Format`` of the user's own at a dotted path."""


def get_format(name: str) -> Format:
    """Return the format called ``name``.

    Raises:
        SettingError: There is none.
    """
    return FORMATS.find(name)
