"""OpenVINO's own format (.xml beside .bin), float32, made from the ONNX file."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amc.export.exported import PARITY_BATCH, Exported
from amc.export.onnx import onnx_bytes
from amc.export.reference import check_agreement, eager_logits, random_batch

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
        network = openvino.Core().read_model(onnx_bytes(model, input_shape))
        openvino.save_model(network, made, compress_to_fp16=False)
        del network
        images = random_batch(input_shape, PARITY_BATCH)
        found = load_openvino(made, images.numpy(), 1)()
        difference = check_agreement(found, eager_logits(model, images), tolerance, "the openvino file")
        size = made.stat().st_size + made.with_suffix(".bin").stat().st_size
        os.replace(made.with_suffix(".bin"), path.with_suffix(".bin"))
        os.replace(made, path)
    return Exported("openvino", path, size, None, difference)


def load_openvino(source: bytes | Path, images: Any, threads: int) -> Callable[[], Any]:
    """Return one inference request, compiled for the shape of ``images``; it returns the logits.

    ``source`` is the content of an ONNX file, or the path of any file that OpenVINO reads.
    """
    core = openvino_module().Core()
    network = core.read_model(source)
    network.reshape(list(images.shape))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # bfloat16 is the default where the CPU has it
    }
    request = core.compile_model(network, "CPU", settings).create_infer_request()

    def run() -> Any:
        return request.infer([images], share_inputs=True, share_outputs=True)[0]

    return run


def openvino_module() -> Any:
    """Import OpenVINO without the package by which it reports its import to its maker over the network.

    OpenVINO has a stub for where ``openvino_telemetry`` is not installed; None stands for that here.
    """
    blocked = "openvino_telemetry" not in sys.modules
    if blocked:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        if blocked:
            del sys.modules["openvino_telemetry"]
    return openvino
