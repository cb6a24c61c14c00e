"""Core ML package (.mlpackage), float32 or quantized; Apple's runtime exists on macOS only."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amc.export.exported import Exported, ExportSettings
from amc.files import temporary_folder
from amc.runtimes.protocol import Shape
from amc.runtimes.reference import check_agreement, conversion, eager_logits, eval_on_cpu, random_batch
from amc.third_party import quiet

if TYPE_CHECKING:
    from torch import nn


def export_coreml(model: nn.Module, input_shape: Shape, path: Path, settings: ExportSettings) -> Exported:
    """Write ``path``, a folder, for one image per call; compared with eager where Core ML can run it.

    Raises:
        AmcError: The model cannot be converted, or the outputs disagree.
    """
    difference, note = None, "not checked here: Core ML runs on macOS only"
    with temporary_folder(path) as folder:
        made = folder / path.name
        converted = _convert(model, input_shape, made)
        if sys.platform == "darwin":
            images = random_batch(input_shape, 1)
            (found,) = converted.predict({converted.input_description._fd_spec[0].name: images}).values()
            eager = eager_logits(model, images)
            difference = check_agreement(found, eager, settings.tolerance, "the coreml file")
            note = ""
        size = _moved(made, path)
    return Exported("coreml", path, size, 1, difference, note=note)


def write_quantized_coreml(model: nn.Module, input_shape: Shape, path: Path) -> tuple[int, str]:
    """Write a quantized network as ``path``, a folder, once its integers and scales are read back from it.

    Returns:
        Bytes of the package, and what was checked.

    Raises:
        AmcError: The model cannot be converted, or the package holds other numbers.
    """
    from amc.quantization.written.coreml import check_weights

    with temporary_folder(path) as folder:
        made = folder / path.name
        _convert(model, input_shape, made)
        with quiet():
            program = _program(made)
        count = check_weights(program, model)
        size = _moved(made, path)
    return size, f"integers and scales of {count} layers read back; not run here: Core ML runs on macOS only"


def _program(path: Path) -> Any:
    """Return the program that a package holds."""
    from coremltools.converters.mil.frontend.milproto.load import load
    from coremltools.models.utils import load_spec

    spec = load_spec(str(path))
    return load(spec, spec.specificationVersion, str(path / "Data" / "com.apple.CoreML" / "weights"))


def _moved(made: Path, path: Path) -> int:
    """Put a package at its place, and return its bytes."""
    size = sum(file.stat().st_size for file in made.rglob("*") if file.is_file())
    shutil.rmtree(path, ignore_errors=True)
    os.replace(made, path)
    return size


def _convert(model: nn.Module, input_shape: Shape, path: Path) -> Any:
    """Save the package and return Core ML's model."""
    import torch

    from amc.quantization.layers import is_quantized
    from amc.quantization.written.coreml import register

    with conversion(model, input_shape, "convert to Core ML"):
        import coremltools

        options: dict[str, Any] = {}
        if is_quantized(model):
            register()
            options["minimum_deployment_target"] = coremltools.target.iOS18  # the first with 4-bit weights
        exported = torch.export.export(eval_on_cpu(model), (random_batch(input_shape, 1),))
        converted = coremltools.convert(
            exported.run_decompositions({}), compute_precision=coremltools.precision.FLOAT32, **options
        )
        converted.save(str(path))
        return converted
