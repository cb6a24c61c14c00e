"""Runs every exporter on pruned networks: ``python -m experiments.parity --out experiments/PARITY.md``.

Each measurement is appended to a JSON-lines file beside the table, so that the same command resumes an
interrupted one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from amc.errors import AmcError
from amc.files import append_line, atomic_write_text
from amc.progress import progress
from experiments.parity.measure import CELLS, check_cells, measure
from experiments.parity.networks import NETWORKS, RIDGE
from experiments.parity.table import table
from experiments.reproduce.origins import made_with
from experiments.run.provenance import commit, versions_of

PACKAGES = ("torch", "onnxruntime", "openvino", "executorch", "litert-torch", "ai-edge-litert", "coremltools")


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    options = argparse.ArgumentParser(prog="python -m experiments.parity", description=__doc__)
    options.add_argument(
        "--out", type=Path, default=Path("PARITY.md"), help="the table; measurements beside it"
    )
    options.add_argument("--networks", nargs="*", default=list(NETWORKS), metavar="NAME")
    options.add_argument(
        "--formats", nargs="*", default=list(CELLS), metavar="FORMAT/PRECISION", help=", ".join(CELLS)
    )
    options.add_argument("--seed", type=int, default=0, help="of weights and ratios")
    return options


def main() -> None:
    """Measure what has no measurement and write the table."""
    options = parser().parse_args()
    torch.set_num_threads(1)
    try:
        check_cells(options.formats)
        for name in options.networks:
            NETWORKS.find(name)
        rows = _measured(options)
        atomic_write_text(options.out, table(rows, _about(options, rows)))
    except AmcError as error:
        print(f"parity: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("parity: stopped; the same command resumes", file=sys.stderr)
        sys.exit(130)


def _measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of every network and format, and append those that are new to the log."""
    log = options.out.with_suffix(".jsonl")
    known = _read(log, options.seed)
    wanted = [(name, cell) for name in options.networks for cell in options.formats]
    with progress(len(wanted), "parity", "file") as bar:
        for name, cell in wanted:
            bar.set_postfix(network=name, file=cell)
            if (name, cell) not in known:
                about = {"commit": commit(), "versions": versions_of(PACKAGES)}
                rows = [{**row, **about} for row in measure(name, cell, options.seed)]
                append_line(log, json.dumps({"cell": [name, cell], "rows": rows}))
                known[name, cell] = rows
            bar.update()
    return [row for key in wanted for row in known[key]]


def _read(log: Path, seed: int) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Read earlier measurements with the same seed; damaged lines are left out and measured again."""
    known = {}
    for line in log.read_text().splitlines() if log.exists() else []:
        try:
            found = json.loads(line)
            name, cell = found["cell"]
        except (ValueError, KeyError, TypeError):
            continue
        if all(row["seed"] == seed for row in found["rows"]):
            known[name, cell] = found["rows"]
    return known


def _about(options: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> list[str]:
    command = f"python -m experiments.parity --out {options.out} --seed {options.seed}"
    if options.networks != list(NETWORKS):
        command += f" --networks {' '.join(options.networks)}"
    if options.formats != list(CELLS):
        command += f" --formats {' '.join(options.formats)}"
    return [
        f"`{command}`, {made_with(rows)}.",
        "",
        "Random weights, every group of channels pruned to a random half to all of them, batch norms",
        f"calibrated, the last linear layer fitted to ten patterns (ridge {RIDGE:g}); 128 images of these",
        "patterns with noise. Differences are relative to the largest output. Random weights carry single",
        "roundings further than trained ones do: docs/quantization.md has the agreement of trained networks.",
        "`onnx` has a free batch size; `executorch` and `litert` files take one image.",
    ]


if __name__ == "__main__":
    main()
