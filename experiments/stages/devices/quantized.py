"""The quantized network of a run as files, and in the runtimes that read them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import nn

from amc.errors import AmcError
from amc.export import ExportSettings
from amc.export.quantized import (
    AGREEMENT,
    QUANTIZED,
    Parity,
    QuantizedFormat,
    Written,
    parities,
    quantized_refusal,
)
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

    A format that cannot hold the network is left out, with the reason. A file that a runtime does not run as
    the simulation does is kept, with the failure.
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
    found, failure = _compared(run, kind, method, model, written)
    for each in found:
        print(f"export: {_line(each)}")
    return {
        "format": name,
        "file": f"exports/{path.name}",
        "bytes": written.bytes,
        "batch": kind.batch,
        "precision": method,
        "note": written.note,
        "runtimes": [asdict(each) for each in found],
        "failure": failure,
    }


def _compared(
    run: Run, kind: QuantizedFormat, method: str, model: nn.Module, written: Written
) -> tuple[list[Parity], str | None]:
    """Return what runtimes compute from a file on the test images, and what failed there, or None."""
    readers = [each for each in kind.readers if method in each.methods and each.available() is None]
    if written.content is None or not readers:
        return [], None
    test, classifies = run.problem.splits.test(), run.problem.graph.classifies
    try:
        found = parities(
            written.content,
            readers,
            test.images.numpy(),
            test_outputs(run, model).numpy(),
            test.labels.numpy() if classifies else None,
            kind.batch,
            lambda kernels: test_outputs(run, kernels(model)).numpy(),
            classifies=classifies,
        )
    except AmcError as error:
        print(f"export: the file could not be compared: {error}")
        return [], str(error)
    failures = [f"{each.runtime}: {each.failure}" for each in found if each.failure is not None]
    return found, "; ".join(failures) or None


def _line(parity: Parity) -> str:
    if parity.failure is not None:
        return f"{parity.runtime} fails on it: {parity.failure}"
    differences = f"differences {parity.mean:.1e} in the mean, {parity.largest:.1e} at most"
    if parity.agreement is None:
        return f"{parity.runtime}: {differences}"
    same = f"same class as the simulation on {parity.agreement:.2f}% of the test images"
    line = f"{parity.runtime}: {same}, {differences}"
    if parity.top1 is not None:
        line += f", top-1 {parity.top1:.2f}%"
    if parity.own is not None:
        line += f"; with the roundings of its kernels the simulation has the same class on {parity.own:.2f}%"
    return line if max(parity.agreement, parity.own or 0) >= AGREEMENT else f"{line}: expected {AGREEMENT}%"
