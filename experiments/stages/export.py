"""Stage ``export``: the final network as ONNX, with a parity check."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from amc.export import export_onnx
from amc.strategy import Strategy

if TYPE_CHECKING:
    from experiments.run import Run


def run(run: Run) -> dict[str, Any]:
    """Write ``exports/model.onnx``."""
    model = run.pruned("model.safetensors")
    strategy = Strategy.load(run.require("strategy.json", "search"))
    folder = run.folder / "exports"
    folder.mkdir(exist_ok=True)
    exported = export_onnx(
        model,
        run.splits.input_shape,
        folder / "model.onnx",
        opset=run.config.export.opset,
        tolerance=run.config.export.tolerance,
        name=run.spec.name,
        widths={group.name: str(group.kept) for group in strategy.groups},
    )
    size = exported.bytes / 2**20
    print(f"export: {exported.path} ({size:.2f} MiB), parity {exported.max_abs_difference:.1e}")
    return {
        "file": "exports/model.onnx",
        "bytes": exported.bytes,
        "opset": exported.opset,
        "max_abs_difference": exported.max_abs_difference,
    }
