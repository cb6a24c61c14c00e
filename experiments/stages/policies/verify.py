"""Stage ``verify``: the latency of the strategy is measured; one that misses the budget is made smaller."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from amc.budget.allocation import Errors, even_errors, shrink_greedily
from amc.errors import AmcError
from amc.latency.prediction.profile import measure_networks
from amc.strategy import Strategy

if TYPE_CHECKING:
    from experiments.run.run import Run

ROUNDS = 3
"""Times the rounds of the profile: the verdict is about a single network."""


def run(run: Run) -> dict[str, Any]:
    """Measure dense and pruned side by side and repair ``strategy.json`` until the budget holds.

    Raises:
        AmcError: the budget is not about latency, or cannot be met in ``profile.repairs`` repairs.
    """
    budget, config = run.budget, run.config.profile
    if budget.kind != "latency":
        raise AmcError(f"stage verify measures latency budgets; budget.kind is {budget.kind}")
    strategy = run.strategy()
    widths = found = run.widths_of(strategy)
    tries: list[dict[str, Any]] = []
    limit = budget.limit
    with tqdm(total=config.repairs + 1, desc="verify", unit="try", disable=None, leave=False) as bar:
        while True:
            dense_ms, ratio = _measure(run, widths)
            predicted = budget.cost(widths) / budget.dense_cost
            tries.append({"widths": list(widths), "predicted_ratio": predicted, "measured_ratio": ratio})
            bar.set_postfix(measured=f"{ratio:.4f}", budget=f"{budget.ratio:g}")
            bar.update()
            if ratio <= budget.ratio or not budget.enforced:
                break
            if len(tries) > config.repairs:
                raise AmcError(
                    f"the strategy takes {ratio:.4f} of the dense latency after {config.repairs} repairs, "
                    f"over latency_ratio={budget.ratio:g}: is the machine noisy (more profile.rounds), "
                    "or the budget near what the smallest network takes"
                )
            limit = min(limit, budget.cost(widths)) * budget.ratio / ratio
            widths = shrink_greedily(run.space, budget.cost, limit, widths, _errors(run))
    if widths != found:
        _keep(run, strategy, widths)
    print(
        f"verify: {tries[-1]['measured_ratio']:.4f} of the dense network's {dense_ms:.3f} ms on "
        f"{config.backend} (predicted {tries[-1]['predicted_ratio']:.4f}, budget {budget.ratio:g}) "
        f"after {len(tries) - 1} repairs"
    )
    return {"dense_ms": dense_ms, "repairs": len(tries) - 1, **tries[-1], "tries": tries}


def _measure(run: Run, widths: tuple[int, ...]) -> tuple[float, float]:
    """Return the dense milliseconds and the pruned network's share of them; weights do not matter."""
    config = run.config.profile
    dense_ms, (ratio,) = measure_networks(
        run.problem.fresh_model().eval(),
        run.problem.graph,
        [widths],
        run.problem.available_backend(),
        batch=config.batch,
        threads=config.threads,
        rounds=ROUNDS * config.rounds,
        progress=lambda done, what: None,
    )
    return dense_ms, ratio


def _errors(run: Run) -> Errors:
    """Return what channels cost in accuracy, where the channel order has found it out."""
    return run.problem.curves()() or even_errors(run.space)


def _keep(run: Run, strategy: Strategy, widths: tuple[int, ...]) -> None:
    """Write the repaired strategy; what it was before is in its provenance."""
    facts = {**strategy.provenance, "repaired_from": list(run.widths_of(strategy))}
    repaired = run.make_strategy(widths, **facts)
    replace(repaired, seed=strategy.seed).save(run.folder.strategy)
    run.folder.forget_pruned()
