"""Stage ``serve``: the dense and the final network, in turns, under the same fixed load."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from amc.errors import UnavailableError
from amc.latency.serving import serve_models
from experiments.config.runtimes import serve_settings, serving_backend

if TYPE_CHECKING:
    from experiments.run.run import Run


def run(run: Run) -> dict[str, Any]:
    """Serve requests at a fixed rate, and measure utilisation and latency.

    Raises:
        FileError: the run folder has no pruned network.
        SettingError: the runtime runs on another device.
        UnavailableError: the runtime is not available.
    """
    config, threads = run.config.serve, run.config.latency.threads
    backend = serving_backend(run.config)
    if (reason := backend.available()) is not None:
        raise UnavailableError(f"serve.backend={backend.name} cannot run here: {reason}")
    models = {"dense": run.problem.dense, "pruned": run.pruned(run.folder.model)}
    found = serve_models(
        models,
        run.problem.splits.input_shape,
        backend,
        serve_settings(config),
        batch=config.batch,
        threads=threads,
    )
    seconds = found.served["dense"].requests / found.rate
    print(f"serve: {backend.name}, {found.rate:.3g} requests/s of {config.batch}, {seconds:.1f} s each")
    for name, served in found.served.items():
        gpu = "" if served.gpu_utilisation is None else f", GPU {100 * served.gpu_utilisation:.0f}%"
        print(
            f"serve: {name} CPU {100 * served.cpu_utilisation:.1f}% of a core{gpu}, latency p50 "
            f"{served.p50_ms:.2f}, p90 {served.p90_ms:.2f}, p99 {served.p99_ms:.2f} ms, "
            f"{served.missed} of {served.requests} later than {found.deadline_ms:.2f} ms"
        )
    setup = {"backend": backend.name, "version": backend.version(), "batch": config.batch, "threads": threads}
    return {**setup, **asdict(found)}
