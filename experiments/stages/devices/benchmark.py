"""Stage ``benchmark``: latency of the dense and the final network on every runtime, in interleaved rounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn
from tqdm import tqdm

from amc.errors import AmcError, out_of_memory
from amc.latency import Backend, BackendResult, RemoteBackend, compare
from amc.latency.comparison import unmeasured
from amc.latency.timing.measure import Comparison
from amc.progress import progress
from amc.runtimes.reference import cause
from experiments.config.runtimes import backend_of
from experiments.stages.networks.quantize import simulation

if TYPE_CHECKING:
    from experiments.run.run import Run


def run(run: Run) -> dict[str, Any]:
    """Measure both networks side by side, at the batch sizes for latency and for throughput.

    A quantized network is measured in the same rounds; one that was not pruned stands beside the dense one.
    A runtime that fails, or lacks memory, is recorded with its reason, and does not stop the others. Where
    the quantized network alone fails beside a pruned one, the float networks keep their times.

    Raises:
        FileError: the run folder has neither a pruned network nor a quantized one.
        AmcError: a runtime is unknown, or its settings are impossible; or nothing was measured, as every
            runtime that is available failed: the message is that of the first.
    """
    config = run.config.latency
    quantized = simulation(run)
    cut = run.folder.model.exists() or quantized is None
    model = run.pruned(run.folder.model) if cut else run.problem.dense
    results, failures = _measured(
        run, model, quantized, config.backends, config.batch, config.rounds, memory=config.memory
    )
    if failures and all(result.comparison is None for result in results):
        raise failures[0]
    facts = {"runtimes": results}
    if config.throughput_batch and config.throughput_batch != config.batch:
        asked = zip(config.backends, results, strict=True)  # a result has no dotted path
        names = [name for name, result in asked if result.comparison is not None]
        rounds = math.ceil(config.rounds / 3)
        facts["throughput"], _ = _measured(
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
) -> tuple[list[BackendResult], list[Exception]]:
    """Compare the networks on the named runtimes, print a line for each, and return what failed, too."""
    config = run.config.latency
    results: list[BackendResult] = []
    failures: list[Exception] = []
    pruned = model is not run.problem.dense
    with progress(len(names), "benchmark", "runtime") as bar:
        for backend in [backend_of(name, config) for name in names]:
            bar.set_postfix(runtime=backend.name)
            measure = partial(
                compare,
                run.problem.dense,
                model,
                run.problem.splits.input_shape,
                backends=[backend],
                batch=batch,
                threads=config.threads,
                rounds=rounds,
                memory=memory,
            )
            try:
                result = _result(measure, _quantized(backend, quantized), pruned=pruned)
            except Exception as error:
                if not _is_failure(error):
                    raise
                failures.append(error)
                result = _failed(run, backend, batch, error)
            results.append(result)
            _tell(result, pruned=pruned)
            bar.update()
    return results, failures


def _result(
    measure: Callable[..., list[BackendResult]], others: dict[str, nn.Module], *, pruned: bool
) -> BackendResult:
    """Return what a runtime measures; beside a pruned network the quantized one is left out if it fails."""
    try:
        (result,) = measure(others=others)
    except Exception as error:
        if not (others and pruned and _is_failure(error)):
            raise
        (result,) = measure()
        with tqdm.external_write_mode():
            of = f"{result.backend}, batch {result.batch}"
            print(f"benchmark: {of}: the quantized network is not timed: {cause(error)}", flush=True)
    return result


def _is_failure(error: Exception) -> bool:
    """Whether an error is about one runtime, not one of this program."""
    return isinstance(error, AmcError) or out_of_memory(error)


def _failed(run: Run, backend: Backend | RemoteBackend, batch: int, error: Exception) -> BackendResult:
    """Return the result of a runtime that failed."""
    shape, threads = run.problem.splits.input_shape, run.config.latency.threads
    return unmeasured(backend, cause(error), shape, batch, threads)


def _tell(result: BackendResult, *, pruned: bool) -> None:
    """Print what a runtime measured, while the bar is away."""
    with tqdm.external_write_mode():
        if pruned or result.comparison is None:
            print(f"benchmark: {_line(result)}", flush=True)
        for name, other in result.others.items():
            print(f"benchmark: {_other_line(result, name, other)}", flush=True)


def _quantized(backend: object, found: tuple[str, nn.Module] | None) -> dict[str, nn.Module]:
    """Return the quantized network by name, if there is one and the runtime runs it."""
    if found is None or found[0] not in getattr(backend, "methods", {}):
        return {}
    return {"quantized": found[1]}


def _other_line(result: BackendResult, name: str, found: Comparison) -> str:
    times = f"{found.dense.median_ms:.3f} -> {found.pruned.median_ms:.3f} ms"
    line = f"{result.backend}, batch {result.batch}, {name}: {times}, {found.speedup:.2f}x"
    for what, by_name in (("file", result.file_bytes), ("memory", result.peak_memory_bytes)):
        if {"dense", name} <= by_name.keys():
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
        if {"dense", "pruned"} <= by_name.keys():
            line += f", {what} {by_name['dense'] / 2**20:.1f} -> {by_name['pruned'] / 2**20:.1f} MiB"
    return line
