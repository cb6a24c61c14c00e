"""The quantized network of a run as files, and in the runtimes that read them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import nn

from amc.errors import AmcError
from amc.export import ExportSettings
from amc.export.quantized import AGREEMENT, QUANTIZED, Parity, QuantizedFormat, parities, quantized_refusal
from experiments.stages.networks.quantize import simulation, test_outputs

if TYPE_CHECKING:
    from experiments.run.run import Run


def export_quantized(run: Run, settings: ExportSettings) -> dict[str, Any] | None:
    """Write the quantized network of a run in every requested format that holds it, and run each file.

    Args:
        run: the run.
        settings: how the float network is exported; the files hold the same metadata.

    Returns:
        The facts; None if the network is not quantized.

    A format that cannot hold the network is left out, with the reason.
    """
    found = simulation(run)
    if found is None:
        return None
    method, model = found
    files: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for name in run.config.export.formats:
        try:
            if (reason := quantized_refusal(name, method)) is not None:
                raise AmcError(reason)
            files.append(_written(run, name, QUANTIZED[name], method, model, settings))
        except AmcError as error:
            left_out[name] = str(error)
            print(f"export: {error}")
    return {"method": method, "files": files, "left_out": left_out}


def _written(
    run: Run, name: str, kind: QuantizedFormat, method: str, model: nn.Module, settings: ExportSettings
) -> dict[str, Any]:
    """Write one file, and compare each runtime that reads it with the simulation on the test images."""
    path = run.folder.exports / f"model_{method}.{kind.suffix}"
    written = kind.write(model, run.problem.splits.input_shape, path, settings)
    print(f"export: {path} ({written.bytes / 2**20:.2f} MiB)" + (f", {written.note}" if written.note else ""))
    found: list[Parity] = []
    readers = [each for each in kind.readers if method in each.methods and each.available() is None]
    if written.content is not None and readers:
        test = run.problem.splits.test()
        labels = test.labels.numpy() if run.problem.graph.classifies else None
        expected = test_outputs(run, model).numpy()
        found = parities(
            written.content,
            readers,
            test.images.numpy(),
            expected,
            labels,
            kind.batch,
            lambda kernels: test_outputs(run, kernels(model)).numpy(),
        )
    for each in found:
        print(f"export: {_line(each)}")
    return {
        "format": name,
        "file": f"exports/{path.name}",
        "bytes": written.bytes,
        "note": written.note,
        "runtimes": [asdict(each) for each in found],
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
    if parity.own is not None:
        line += f"; with the roundings of its kernels the simulation has the same class on {parity.own:.2f}%"
    return line if max(parity.agreement, parity.own or 0) >= AGREEMENT else f"{line}: expected {AGREEMENT}%"
