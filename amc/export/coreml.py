"""Core ML package (.mlpackage), float32; Apple's runtime exists on macOS only."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amc.errors import AmcError
from amc.export.exported import Exported
from amc.runtimes.reference import cause, check_agreement, eager_logits, eval_on_cpu, random_batch
from amc.third_party import quiet

if TYPE_CHECKING:
    from torch import nn


def export_coreml(
    model: nn.Module, input_shape: tuple[int, int, int], path: Path, *, tolerance: float
) -> Exported:
    """Write ``path``, a folder, for one image per call; compared with eager where Core ML can run it.

    Raises:
        AmcError: The model cannot be converted, or the outputs disagree.
    """
    difference, note = None, "not checked here: Core ML runs on macOS only"
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        made = Path(folder) / path.name
        converted = _convert(model, input_shape, made)
        if sys.platform == "darwin":
            images = random_batch(input_shape, 1)
            (found,) = converted.predict({converted.input_description._fd_spec[0].name: images}).values()
            difference = check_agreement(found, eager_logits(model, images), tolerance, "the coreml file")
            note = ""
        size = sum(file.stat().st_size for file in made.rglob("*") if file.is_file())
        shutil.rmtree(path, ignore_errors=True)
        os.replace(made, path)
    return Exported("coreml", path, size, 1, difference, note=note)


def _convert(model: nn.Module, input_shape: tuple[int, int, int], path: Path) -> Any:
    import torch

    try:
        with quiet():
            import coremltools

            exported = torch.export.export(eval_on_cpu(model), (random_batch(input_shape, 1),))
            converted = coremltools.convert(
                exported.run_decompositions({}), compute_precision=coremltools.precision.FLOAT32
            )
            converted.save(str(path))
            return converted
    except Exception as error:  # its passes have no common base class of errors
        raise AmcError(
            f"{type(model).__name__} does not convert to Core ML for an input of shape "
            f"{tuple(input_shape)}; likely cause: {cause(error)}"
        ) from error
