"""OpenVINO's own format (.xml beside .bin), float32, made from the ONNX file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from amc.export.exported import PARITY_BATCH, Exported, ExportSettings
from amc.files import temporary_folder
from amc.runtimes.onnx_file import onnx_bytes
from amc.runtimes.openvino import load, openvino_core, openvino_module
from amc.runtimes.protocol import Shape
from amc.runtimes.reference import check_agreement, conversion, eager_logits, random_batch, running

if TYPE_CHECKING:
    from torch import nn


def export_openvino(model: nn.Module, input_shape: Shape, path: Path, settings: ExportSettings) -> Exported:
    """Write ``path`` (.xml) and its weights (.bin) with a free batch size, once they agree with eager.

    Raises:
        AmcError: The model cannot be exported as ONNX, OpenVINO lacks an operator, or the outputs disagree.
    """
    openvino = openvino_module()
    with temporary_folder(path) as folder:
        made = folder / path.name
        content = onnx_bytes(model, input_shape)
        with conversion(model, input_shape, "convert to OpenVINO"):
            openvino.save_model(openvino_core().read_model(content), made, compress_to_fp16=False)
        images = random_batch(input_shape, PARITY_BATCH)
        with running("the openvino file"):
            found = load(made, images.numpy(), 1)()
        eager = eager_logits(model, images)
        difference = check_agreement(found, eager, settings.tolerance, "the openvino file")
        size = made.stat().st_size + made.with_suffix(".bin").stat().st_size
        os.replace(made.with_suffix(".bin"), path.with_suffix(".bin"))
        os.replace(made, path)
    return Exported("openvino", path, size, None, difference)
