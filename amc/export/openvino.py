"""OpenVINO's own format (.xml beside .bin), float32, made from the ONNX file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from amc.export.exported import PARITY_BATCH, Exported
from amc.runtimes.onnx_file import onnx_bytes
from amc.runtimes.openvino import load_openvino, openvino_core, openvino_module
from amc.runtimes.reference import check_agreement, eager_logits, random_batch

if TYPE_CHECKING:
    from torch import nn


def export_openvino(
    model: nn.Module, input_shape: tuple[int, int, int], path: Path, *, tolerance: float
) -> Exported:
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
        found = load_openvino(made, images.numpy(), 1)()
        difference = check_agreement(found, eager_logits(model, images), tolerance, "the openvino file")
        size = made.stat().st_size + made.with_suffix(".bin").stat().st_size
        os.replace(made.with_suffix(".bin"), path.with_suffix(".bin"))
        os.replace(made, path)
    return Exported("openvino", path, size, None, difference)
