"""The quantized network of a run as a file, and in the runtimes that read it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from amc.export.quantized import AGREEMENT, Parity, parities, write_quantized
from amc.runtimes.onnxruntime import ONNXRUNTIME
from amc.runtimes.openvino import OPENVINO
from experiments.stages.networks.quantize import simulation, test_outputs

if TYPE_CHECKING:
    from experiments.run.run import Run

READERS = (ONNXRUNTIME, OPENVINO)
"""Runtimes that read the ONNX file."""


def export_quantized(run: Run) -> dict[str, Any] | None:
    """Write the quantized network of a run, and compare each runtime with it on the test images.

    Returns:
        The facts; None if the network is not quantized, or ONNX is not among the formats.

    Raises:
        AmcError: the file cannot be written, or a runtime computes nonsense from it.
    """
    found = simulation(run)
    if found is None:
        return None
    method, model = found
    others = [name for name in run.config.export.formats if name != "onnx"]
    if others:
        print(f"export: the quantized network is written as onnx alone, not as {', '.join(others)}")
    if "onnx" not in run.config.export.formats:
        return None
    readers = [each for each in READERS if method in each.methods and each.available() is None]
    if not readers:
        print(f"export: {method} is left out: no runtime here reads it from ONNX")
        return None
    path = run.folder.exports / f"model_{method}.onnx"
    content = write_quantized(model, run.problem.splits.input_shape, path, run.config.export.opset)
    test = run.problem.splits.test()
    expected = test_outputs(run, model)
    labels = test.labels.numpy() if run.problem.graph.classifies else None
    found_parities = parities(content, readers, test.images.numpy(), expected.numpy(), labels)
    print(f"export: {path} ({len(content) / 2**20:.2f} MiB)")
    for each in found_parities:
        print(f"export: {_line(each)}")
    return {
        "format": "onnx",
        "method": method,
        "file": f"exports/{path.name}",
        "bytes": len(content),
        "runtimes": [asdict(each) for each in found_parities],
    }


def _line(parity: Parity) -> str:
    if parity.agreement is None:
        return f"{parity.runtime} does not run it: {parity.failure}"
    line = (
        f"{parity.runtime}: same class as the simulation on {parity.agreement:.2f}% of the test images, "
        f"differences {parity.mean:.1e} in the mean, {parity.largest:.1e} at most"
    )
    if parity.top1 is not None:
        line += f", top-1 {parity.top1:.2f}%"
    return line if parity.agreement >= AGREEMENT else f"{line}: expected {AGREEMENT}%"
