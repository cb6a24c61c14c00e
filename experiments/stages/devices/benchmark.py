"""Stage ``benchmark``: latency of the dense and the final network on every runtime, in interleaved rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from amc.latency import BackendResult, compare
from amc.latency.timing.measure import Comparison
from amc.progress import progress
from experiments.config.runtimes import backend_of
from experiments.stages.networks.quantize import simulation

if TYPE_CHECKING:
    from experiments.run.run import Run


def run(run: Run) -> dict[str, Any]:
    """Measure both networks side by side, at the batch sizes for latency and for throughput.

    A quantized network is measured in the same rounds; one that was not pruned stands beside the dense one.

    Raises:
        FileError: the run folder has neither a pruned network nor a quantized one.
        AmcError: a runtime is unknown, or its settings are impossible.
    """
    config = run.config.latency
    quantized = simulation(run)
    cut = run.folder.model.exists() or quantized is None
    model = run.pruned(run.folder.model) if cut else run.problem.dense
    results = _measured(
        run, model, quantized, config.backends, config.batch, config.rounds, memory=config.memory
    )
    facts = {"runtimes": results}
    if config.throughput_batch and config.throughput_batch != config.batch:
        names = [result.backend for result in results if result.comparison is not None]
        rounds = math.ceil(config.rounds / 3)
        facts["throughput"] = _measured(
            run, model, quantized, names, config.throughput_batch, rounds, memory=False
        )
    return {name: [result.to_json() for result in found] for name, found in facts.items()}


def _measured(
    run: Run,
    model: nn.Module,
    quantized: tuple[str, nn.Module] | None,
    names: Sequence[str],
    batch: int,
    rounds: int,
    *,
    memory: bool,
) -> list[BackendResult]:
    """Compare the networks on the named runtimes, and print a line for each."""
    config = run.config.latency
    with progress(len(names), "benchmark", "runtime") as bar:

        def advance(name: str) -> None:
            bar.set_postfix(runtime=name)
            bar.update()

        results = [
            result
            for backend in [backend_of(name, config) for name in names]
            for result in compare(
                run.problem.dense,
                model,
                run.problem.splits.input_shape,
                backends=[backend],
                batch=batch,
                threads=config.threads,
                rounds=rounds,
                memory=memory,
                progress=advance,
                others=_quantized(backend, quantized),
            )
        ]
    for result in results:
        if model is not run.problem.dense or result.comparison is None:
            print(f"benchmark: {_line(result)}")
        for name, other in result.others.items():
            print(f"benchmark: {_other_line(result, name, other)}")
    return results


def _quantized(backend: object, found: tuple[str, nn.Module] | None) -> dict[str, nn.Module]:
    """Return the quantized network by name, if there is one and the runtime runs it."""
    if found is None or found[0] not in getattr(backend, "methods", {}):
        return {}
    return {"quantized": found[1]}


def _other_line(result: BackendResult, name: str, found: Comparison) -> str:
    times = f"{found.dense.median_ms:.3f} -> {found.pruned.median_ms:.3f} ms"
    line = f"{result.backend}, batch {result.batch}, {name}: {times}, {found.speedup:.2f}x"
    for what, by_name in (("file", result.file_bytes), ("memory", result.peak_memory_bytes)):
        if name in by_name:
            line += f", {what} {by_name['dense'] / 2**20:.2f} -> {by_name[name] / 2**20:.2f} MiB"
    return line


def _line(result: BackendResult) -> str:
    if result.comparison is None:
        return f"{result.backend} is left out: {result.unavailable}"
    found = result.comparison
    times = f"{found.dense.median_ms:.3f} -> {found.pruned.median_ms:.3f} ms"
    spread = f"{found.speedup:.2f}x ({found.speedup_q1:.2f} to {found.speedup_q3:.2f})"
    line = f"{result.backend}, batch {result.batch}: {times}, {spread}"
    for what, by_name in (("file", result.file_bytes), ("memory", result.peak_memory_bytes)):
        if by_name:
            line += f", {what} {by_name['dense'] / 2**20:.1f} -> {by_name['pruned'] / 2**20:.1f} MiB"
    return line
