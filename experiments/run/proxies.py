"""How well a score on some images predicts scores on others, over networks that a search might compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from amc.budget.allocation import uniform_widths
from amc.budget.budget import Budget
from amc.budget.weighing import greedy_widths
from amc.budget.widths import WidthSpace
from amc.errors import AmcError
from amc.result import Evaluation
from experiments.run.values import LEAST_NETWORKS
from experiments.statistics import Interval, bootstrap_correlation

if TYPE_CHECKING:
    from experiments.run.run import Run

Widths = tuple[int, ...]

TRUTH = ("accuracy", "agreement", "likeness")
"""The scores on the other images that are to be predicted."""
DRAWS = 100_000
"""Number of draws after which ``around`` ends."""


def scores_of(evaluation: Evaluation) -> dict[str, float]:
    """Return a classifier's scores by name; higher is better: accuracy in percent, loss negative in nats."""
    assert evaluation.top1 is not None
    assert evaluation.loss is not None
    return {
        "accuracy": evaluation.top1,
        "loss": -evaluation.loss,
        "agreement": evaluation.agreement,
        "likeness": evaluation.likeness,
    }


def similar_networks(run: Run, count: int, spread: float) -> list[Widths]:
    """Draw networks at the run's budget around its greedy allocation; the seed is the run's.

    Without error curves they are drawn around the run's strategy, or the uniform allocation if it has none.
    Of a small space there may be fewer than ``count``; a line says so.

    Args:
        run: the run.
        count: number of networks.
        spread: standard deviation of a preserve ratio's logarithm.

    Raises:
        AmcError: there are fewer than ``LEAST_NETWORKS``, or the strategy is of another network.
    """
    found = list(islice(around(_centre(run), run.space, run.budget, spread, run.config.seed), count))
    if len(found) < count:
        told = f"only {len(found)} different networks of this budget were found, and {count} are asked for"
        more = "a larger proxies.spread, or a smaller budget.round_to, gives more"
        if len(found) < LEAST_NETWORKS:
            raise AmcError(f"proxies: {told} (proxies.networks); expected at least {LEAST_NETWORKS}: {more}")
        print(f"proxies: {told} (proxies.networks); {more}")
    return found


def _centre(run: Run) -> Widths:
    if curves := run.problem.curves()():
        return greedy_widths(run.space, run.budget, curves)
    if run.config.strategy or run.folder.strategy.exists():
        return run.widths_of(run.strategy())
    return uniform_widths(run.space, run.budget)


def around(widths: Widths, space: WidthSpace, budget: Budget, spread: float, seed: int) -> Iterator[Widths]:
    """Yield different networks at the budget, with preserve ratios log-normal around those of ``widths``.

    It ends after ``DRAWS`` draws.

    Args:
        widths: channels of every group.
        space: the widths that groups may take.
        budget: networks are scaled to it.
        spread: standard deviation of a preserve ratio's logarithm.
        seed: seed of the draws.
    """
    random, seen = np.random.default_rng(seed), set()
    ratios = np.asarray(widths) / np.asarray(space.dense)
    for _ in range(DRAWS):
        drawn = budget.scale(
            space, list(np.minimum(ratios * np.exp(random.normal(0, spread, len(ratios))), 1))
        )
        if drawn not in seen:
            seen.add(drawn)
            yield drawn


def correlations(
    scores: Sequence[Mapping[str, float]], truth: Sequence[Mapping[str, float]]
) -> dict[str, dict[str, Interval | None]]:
    """Return Spearman's rank correlation of every score with every truth, with its 95% bootstrap interval.

    Args:
        scores: of each network on the search images, by name.
        truth: of each network on the other images; of its names those of ``TRUTH`` count.

    Returns:
        score -> truth -> correlation; None if one of both is the same for all networks.
    """
    return {
        name: {kind: _correlation([s[name] for s in scores], [t[kind] for t in truth]) for kind in TRUTH}
        for name in scores[0]
    }


def _correlation(one: Sequence[float], other: Sequence[float]) -> Interval | None:
    if min(len(set(one)), len(set(other))) < 2:
        return None
    return bootstrap_correlation(one, other)


def predicts(found: Interval | None) -> bool:
    """Return whether a score orders networks better than chance: its interval lies above zero."""
    return found is not None and found.low > 0
