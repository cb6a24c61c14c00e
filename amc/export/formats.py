"""The file formats that a network can be exported to, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from amc.export.exported import Exported, write_checked
from amc.export.onnx import export_onnx
from amc.registry import Registry
from amc.third_party import missing

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ExportSettings:
    """How a network is exported.

    Attributes:
        tolerance: Largest allowed difference from eager, relative to the largest absolute logit.
        opset: ONNX operator set version; the exporter's own default if None.
        name: Stored in the ONNX file.
        widths: Channel widths by layer, stored in the ONNX file.
    """

    tolerance: float = 1e-4
    opset: int | None = None
    name: str | None = None
    widths: Mapping[str, str] = field(default_factory=dict)


Writer = Callable[["nn.Module", tuple[int, int, int], Path, ExportSettings], Exported]


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        file: Name of the file in the ``exports`` folder.
        packages: What must be installed.
        write: Converts, checks and writes; raises ``AmcError``.
    """

    file: str
    packages: tuple[str, ...]
    write: Writer

    def unavailable(self) -> str | None:
        """Return None if it can be written here, else the reason in one line."""
        return missing(*self.packages)


def _onnx(model: nn.Module, shape: tuple[int, int, int], path: Path, settings: ExportSettings) -> Exported:
    found = export_onnx(
        model,
        shape,
        path,
        opset=settings.opset,
        tolerance=settings.tolerance,
        name=settings.name,
        widths=settings.widths,
    )
    return Exported("onnx", path, found.bytes, None, found.max_abs_difference)


def _executorch(
    model: nn.Module, shape: tuple[int, int, int], path: Path, settings: ExportSettings
) -> Exported:
    from amc.runtimes.executorch import executorch_bytes, load_executorch

    content = executorch_bytes(model, shape)
    return write_checked(
        "executorch", content, load_executorch, model, shape, path, batch=1, tolerance=settings.tolerance
    )


def _litert(model: nn.Module, shape: tuple[int, int, int], path: Path, settings: ExportSettings) -> Exported:
    from amc.runtimes.litert import litert_bytes, load_litert

    content = litert_bytes(model, shape)
    return write_checked(
        "litert", content, load_litert, model, shape, path, batch=1, tolerance=settings.tolerance
    )


def _openvino(
    model: nn.Module, shape: tuple[int, int, int], path: Path, settings: ExportSettings
) -> Exported:
    from amc.export.openvino import export_openvino

    return export_openvino(model, shape, path, tolerance=settings.tolerance)


def _coreml(model: nn.Module, shape: tuple[int, int, int], path: Path, settings: ExportSettings) -> Exported:
    from amc.export.coreml import export_coreml

    return export_coreml(model, shape, path, tolerance=settings.tolerance)


def _torch_export(
    model: nn.Module, shape: tuple[int, int, int], path: Path, settings: ExportSettings
) -> Exported:
    from amc.export.torch_export import load_torch_export, torch_export_bytes

    content = torch_export_bytes(model, shape)
    return write_checked(
        "torch_export",
        content,
        load_torch_export,
        model,
        shape,
        path,
        batch=None,
        tolerance=settings.tolerance,
    )


FORMATS: Registry[Format] = Registry(
    "export format",
    {
        "onnx": Format("model.onnx", ("onnx", "onnxscript", "onnxruntime"), _onnx),
        "executorch": Format("model.pte", ("executorch", "torchao"), _executorch),
        "litert": Format("model.tflite", ("litert_torch", "ai_edge_litert"), _litert),
        "openvino": Format("model.xml", ("openvino", "onnx", "onnxscript"), _openvino),
        "coreml": Format("model.mlpackage", ("coremltools",), _coreml),
        "torch_export": Format("model.pt2", (), _torch_export),
    },
)


def get_format(name: str) -> Format:
    """Return the format called ``name``.

    Raises:
        AmcError: There is none.
    """
    return FORMATS.find(name)
