"""Which score on the search's images predicts test scores: ``... benchmark proxies OVERRIDE ...``.

The overrides describe the problem as they do for ``amc``. Networks within the budget are drawn around the
greedy allocation, so that they are as similar as those that a search compares. Each is judged as in a search,
by every score on several numbers of images, and on the test images. The result is Spearman's rank correlation
of each score with the test scores.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from amc.budget.budget import Budget
from amc.budget.weighing import greedy_widths
from amc.budget.widths import WidthSpace
from amc.errors import AmcError
from amc.scoring.run import outputs
from amc.scoring.scores import agreement, cross_entropy, likeness, top1
from experiments.benchmark.problem import config_of
from experiments.run.run import Run, open_run
from experiments.stages.pipeline import run_stage
from experiments.statistics import bootstrap_correlation

Scores = Mapping[str, Callable[[Tensor, Tensor, Tensor], float]]

SCORES: Scores = {
    "accuracy": lambda found, dense, labels: top1(found, labels),
    "loss": lambda found, dense, labels: -cross_entropy(found, labels),
    "agreement": lambda found, dense, labels: agreement(found, dense),
    "likeness": lambda found, dense, labels: likeness(found, dense),
}
"""Name -> function of logits (N, classes), the dense network's logits and labels (N,); higher is better."""
TRUTH = ("accuracy", "agreement")
"""The scores on the test images that are to be predicted."""


DRAWS = 100_000
"""Number of draws after which ``around`` gives up."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("overrides", nargs="*", help="of the configuration")
    parser.add_argument("--networks", type=int, default=30)
    parser.add_argument(
        "--spread", type=float, default=0.2, help="standard deviation of a preserve ratio's logarithm"
    )
    parser.add_argument(
        "--images",
        type=int,
        nargs="+",
        default=[500, 1000],
        help="numbers of search images, beside all",
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Correlate scores; see the module's docstring.

    Raises:
        AmcError: There are too few networks, or the overrides are wrong.
    """
    if options.networks < 5:
        raise AmcError(f"--networks is {options.networks}; expected at least 5 for a rank correlation")
    with tempfile.TemporaryDirectory() as folder:
        job = open_run(config_of(*options.overrides), Path(folder))
        if not job.problem.comes_trained:
            with contextlib.redirect_stdout(sys.stderr):  # stdout is for the JSON
                run_stage(job, "train")
        judge = _judge(job, options.images)
        rows = [judge(widths) for widths in tqdm(_networks(job, options), disable=None)]
        job.problem.release()
    truth = {name: [row[f"test {name}"] for row in rows] for name in TRUTH}
    return {
        "overrides": options.overrides,
        "networks": len(rows),
        "spread": options.spread,
        "test_accuracy": [min(truth["accuracy"]), max(truth["accuracy"])],
        "spearman": {
            name: {kind: _correlation([row[name] for row in rows], truth[kind]) for kind in TRUTH}
            for name in rows[0]
            if not name.startswith("test ")
        },
    }


def _correlation(one: list[float], other: list[float]) -> list[float]:
    found = bootstrap_correlation(one, other)
    return [found.value, found.low, found.high]


def _networks(job: Run, options: argparse.Namespace) -> list[tuple[int, ...]]:
    start = greedy_widths(job.space, job.budget, job.problem.curves()())
    drawn = around(start, job.space, job.budget, options.spread, job.config.seed)
    return list(islice(drawn, options.networks))


def around(
    widths: tuple[int, ...], space: WidthSpace, budget: Budget, spread: float, seed: int
) -> Iterator[tuple[int, ...]]:
    """Yield different networks at the budget, with preserve ratios log-normal around those of ``widths``.

    Args:
        widths: Channels of every group.
        space: The widths that groups may take.
        budget: Networks are scaled to it.
        spread: Standard deviation of a preserve ratio's logarithm.
        seed: Seed of the draws.

    Raises:
        AmcError: ``DRAWS`` draws gave too few different networks.
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
    raise AmcError(f"only {len(seen)} different networks were found; use fewer, or a larger --spread")


def _judge(job: Run, counts: list[int]) -> Callable[[tuple[int, ...]], dict[str, float]]:
    """Return a function from widths to scores by name, on the search's images and the test images."""
    evaluator, test = job.problem.evaluator(), job.problem.splits.test()
    images, batch = test.images.to(evaluator.images), evaluator.batch_size
    dense = evaluator.dense_outputs
    dense_on_test = evaluator.outputs(job.problem.graph.dense_widths, images)
    sizes = sorted({min(count, len(dense)) for count in (*counts, len(dense))})

    def judge(widths: tuple[int, ...]) -> dict[str, float]:
        with evaluator.builder.network(widths) as model:
            found, on_test = outputs(model, evaluator.images, batch), outputs(model, images, batch)
        row = {
            f"{name} on {n}": score(found[:n], dense[:n], evaluator.labels[:n])
            for n in sizes
            for name, score in SCORES.items()
        }
        return row | {f"test {name}": SCORES[name](on_test, dense_on_test, test.labels) for name in TRUTH}

    return judge
