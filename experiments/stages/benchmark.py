"""Stage ``benchmark``: latency of the dense and the final network, interleaved, on every runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from amc.latency import compare

if TYPE_CHECKING:
    from experiments.run import Run


def run(run: Run) -> dict[str, Any]:
    """Measure both networks side by side."""
    config = run.config.latency
    model = run.pruned("model.safetensors")
    with tqdm(total=len(config.backends), desc="benchmark", unit="runtime", disable=None, leave=False) as bar:

        def progress(name: str) -> None:
            bar.set_postfix(runtime=name)
            bar.update()

        results = compare(
            run.dense,
            model,
            run.splits.input_shape,
            backends=config.backends,
            batch=config.batch,
            threads=config.threads,
            rounds=config.rounds,
            progress=progress,
        )
    for result in results:
        if result.comparison is None:
            print(f"benchmark: {result.backend} is left out: {result.unavailable}")
            continue
        found = result.comparison
        print(
            f"benchmark: {result.backend} {found.dense.median_ms:.3f} -> {found.pruned.median_ms:.3f} ms, "
            f"{found.speedup:.2f}x ({found.speedup_q1:.2f} to {found.speedup_q3:.2f})"
        )
    return {"runtimes": [result.to_json() for result in results]}
