"""OpenVINO's own format (.xml beside .bin), float32, made from the ONNX file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from amc.export.exported import PARITY_BATCH, Exported, ExportSettings
from amc.runtimes.onnx_file import onnx_bytes
from amc.runtimes.openvino import load, openvino_core, openvino_module
from amc.runtimes.protocol import Shape
from amc.runtimes.reference import check_agreement, eager_logits, random_batch

if TYPE_CHECKING:
    from torch import nn


def export_openvino(model: nn.Module, input_shape: Shape, path: Path, settings: ExportSettings) -> Exported:
    """Write ``path`` (.xml) and its weights (.bin) with a free batch size, once they agree with eager.

    Raises:
        AmcError: The model cannot be exported as ONNX, or the outputs disagree.
    """
    openvino = openvino_module()
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        made = Path(folder) / path.name
        network = openvino_core().read_model(onnx_bytes(model, input_shape))
        openvino.save_model(network, made, compress_to_fp16=False)
        del network
        images = random_batch(input_shape, PARITY_BATCH)
        found = load(made, images.numpy(), 1)()
        eager = eager_logits(model, images)
        difference = check_agreement(found, eager, settings.tolerance, "the openvino file")
        size = made.stat().st_size + made.with_suffix(".bin").stat().st_size
        os.replace(made.with_suffix(".bin"), path.with_suffix(".bin"))
        os.replace(made, path)
    return Exported("openvino", path, size, None, difference)
