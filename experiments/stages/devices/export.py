"""Stage ``export``: the final network in every requested format, each file checked if it can run here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from amc.dotted import own_part
from amc.errors import AmcError
from amc.export import Exported, ExportSettings, get_format
from amc.export.metadata import described
from amc.strategy import Strategy
from experiments.report.carried import write_carried
from experiments.run.folder import quantizes
from experiments.stages.devices.quantized import export_quantized
from experiments.stages.networks.quantize import final_network

if TYPE_CHECKING:
    from experiments.run.run import Run


def run(run: Run) -> dict[str, Any]:
    """Write a file for each format into ``exports``; a format that fails does not stop the others.

    Files of the export before that are not written again are removed.

    Raises:
        FileError: the run folder has no pruned network.
        AmcError: no format could be written; the message gives the reason of the first.
    """
    model, widths = _final(run)
    former = run.folder.exported()
    (run.folder.exports).mkdir(exist_ok=True)
    settings = ExportSettings(
        tolerance=run.config.export.tolerance,
        opset=run.config.export.opset,
        name=run.problem.spec.name,
        widths=widths,
        about=described(run.problem.splits, classifies=run.problem.graph.classifies),
    )
    files: list[dict[str, Any]] = []
    failures: dict[str, str] = {}
    for name in run.config.export.formats:
        kind = get_format(name)
        path = run.folder.exports / kind.file
        try:
            if (reason := kind.unavailable()) is not None:
                raise AmcError(reason)
            with own_part("export format", name):
                files.append(_facts(kind.write(model, run.problem.splits.input_shape, path, settings)))
        except AmcError as error:
            failures[name] = str(error)
            print(f"export: {name} is left out: {error}")
    if failures and not files:
        raise AmcError(next(iter(failures.values())))
    quantized = export_quantized(run, settings)
    both = [*files, *(quantized["files"] if quantized else [])]
    predict = write_carried(run.folder.exports, run.problem.spec.name, settings.about, both)
    new = {run.folder.path / own["file"] for own in (*both, *predict)}
    run.folder.remove_exported(path for path in former if path not in new)
    print(f"export: {run.folder.exports}/README.md says how to run it")
    return {"files": files, "left_out": failures, "quantized": quantized, "predict": predict}


def _final(run: Run) -> tuple[nn.Module, dict[str, str]]:
    """Return the final network and its widths; a dense network is exported only if it is quantized."""
    if not run.folder.model.exists() and quantizes(run.records.read("quantize")):
        return final_network(run)[0], {}
    model = run.pruned(run.folder.model)
    strategy = Strategy.load(run.folder.require(run.folder.strategy, "search"))
    return model, {group.name: str(group.kept) for group in strategy.groups}


def _facts(exported: Exported) -> dict[str, Any]:
    """Print a line about a file, and return its facts."""
    difference = exported.max_abs_difference
    checked = exported.note if difference is None else f"parity {difference:.1e}"
    print(f"export: {exported.path} ({exported.bytes / 2**20:.2f} MiB), {checked}")
    return {
        "format": exported.format,
        "file": f"exports/{exported.path.name}",
        "bytes": exported.bytes,
        "batch": exported.batch,
        "precision": exported.precision,
        "max_abs_difference": difference,
        "note": exported.note,
    }
