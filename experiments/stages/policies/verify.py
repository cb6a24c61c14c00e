"""Stage ``verify``: measures the latency of the strategy, and makes it smaller if it misses the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from amc.budget.allocation import Errors, even_errors
from amc.errors import AmcError
from amc.latency.prediction.build import Check, checked_widths, kept
from amc.latency.prediction.table import Target
from amc.progress import progress
from amc.scoring.run import in_eval
from amc.strategy import Strategy

if TYPE_CHECKING:
    from experiments.run.run import Run


def run(run: Run) -> dict[str, Any]:
    """Measure dense and pruned side by side and repair ``strategy.json`` until the budget holds.

    On another device or version of the runtime than the latency model is about, nothing is repaired: the
    limit is about that one.

    Raises:
        AmcError: the budget has no limit on the latency, or it is not met after ``profile.repairs`` repairs:
            what was measured is recorded, and the strategy is left as it is.
    """
    budget, config, problem = run.budget, run.config.profile, run.problem
    target = budget.of("latency")
    strategy, elsewhere = run.strategy(), ""
    found = run.widths_of(strategy)
    tries: list[Check] = []
    checks = checked_widths(
        in_eval(problem.fresh_model()),
        problem.graph,
        run.space,
        budget,
        found,
        problem.latency.runtime(),
        run.profile_settings(),
        lambda: _errors(run),
    )
    with progress(config.repairs + 1, "verify", "try") as bar:
        try:
            for check in checks:
                tries.append(check)
                elsewhere = _elsewhere(check, problem.latency.model.target)
                bar.set_postfix(measured=f"{check.measured:.4f}", budget=f"{target.ratio:g}")
                bar.update()
                if elsewhere:
                    break
        except AmcError:
            if (
                tries
            ):  # the strategy stays, without a repair, and `prune` is to know that it is over the budget
                run.record("verify", {**_record(run, tries[0], tries), "repairs": 0})
            raise
    check = tries[0] if elsewhere else kept(tries)
    if check.widths != found:
        strategy = _repaired(run, strategy, check.widths)
    run.take(strategy)
    print(
        f"verify: {check.measured:.4f} of the dense network's {check.dense_ms:.3f} ms on {config.backend} "
        f"(predicted {check.predicted:.4f}, budget {target.ratio:g}) after {len(tries) - 1} repairs"
    )
    if elsewhere:
        print(f"verify: {elsewhere}")
    return _record(run, check, tries)


def _record(run: Run, check: Check, tries: Sequence[Check]) -> dict[str, Any]:
    """Return the facts of the check of the strategy, and of all checks."""
    described = run.problem.latency.described()
    return {
        "dense_ms": check.dense_ms,
        "repairs": len(tries) - 1,
        **_facts(check),
        "tries": [_facts(each) for each in tries],
        "on": {**described, "device": check.device, "version": check.version},
    }


def _elsewhere(check: Check, target: Target) -> str:
    """Return what is to be told of a check on another device or version than the model's; else nothing."""
    here, there = (f"{own.device}, version {own.version}" for own in (check, target))
    if here == there:
        return ""
    return (
        f"this was measured on {here}, but latency_model.json is about {there}: it counts for nothing; "
        "stages=[profile,search,verify] goes by this one"
    )


def _facts(check: Check) -> dict[str, Any]:
    return {
        "widths": list(check.widths),
        "predicted_ratio": check.predicted,
        "measured_ratio": check.measured,
    }


def _errors(run: Run) -> Errors:
    """Return the error curves of the groups; even ones if the channel order estimates none."""
    return run.problem.curves()() or even_errors(run.space)


def _repaired(run: Run, strategy: Strategy, widths: tuple[int, ...]) -> Strategy:
    """Return the repaired strategy; its provenance holds the widths before the first repair."""
    facts = {"repaired_from": list(run.widths_of(strategy)), **strategy.provenance}
    return replace(run.make_strategy(widths, **facts), seed=strategy.seed)
