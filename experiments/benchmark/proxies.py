"""Which score on the search's images predicts test scores: ``... benchmark proxies OVERRIDE ...``.

The overrides describe the problem as they do for ``amc``. Networks within the budget are drawn around the
greedy allocation, so that they are as similar as those that a search compares. Each is judged as in a search,
by every score on several numbers of images, and on the test images. The result is Spearman's rank correlation
of each score with the test scores. With ``--select`` the smaller numbers of images are also chosen by the
dense network (``data.select``), beside the first ones.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from amc.data import LabelledImages
from amc.data.selection import METHODS, choose
from amc.errors import AmcError
from amc.scoring.run import outputs
from experiments.benchmark.problem import config_of
from experiments.run.proxies import correlations, scores_of, similar_networks
from experiments.run.run import Run, open_run
from experiments.run.values import LEAST_NETWORKS
from experiments.stages.pipeline import run_stage

Scores = dict[str, float]


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
    parser.add_argument("--select", nargs="*", default=[], choices=METHODS, help="ways to choose them")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Correlate scores; see the module's docstring.

    Raises:
        AmcError: There are too few networks, or the overrides are wrong.
    """
    if options.networks < LEAST_NETWORKS:
        raise AmcError(
            f"--networks is {options.networks}; expected at least {LEAST_NETWORKS} for a rank correlation"
        )
    with tempfile.TemporaryDirectory() as folder:
        job = open_run(config_of(*options.overrides), Path(folder))
        if not job.problem.comes_trained:
            with contextlib.redirect_stdout(sys.stderr):  # stdout is for the JSON
                run_stage(job, "train")
        judge = _judge(job, options.images, options.select)
        networks = similar_networks(job, options.networks, options.spread)
        judged = [judge(widths) for widths in tqdm(networks, disable=None)]
        job.problem.release()
    scores, truth = zip(*judged, strict=True)
    accuracy = [own["accuracy"] for own in truth]
    return {
        "overrides": options.overrides,
        "networks": len(networks),
        "spread": options.spread,
        "test_accuracy": [min(accuracy), max(accuracy)],
        "spearman": {
            name: {kind: found and [found.value, found.low, found.high] for kind, found in own.items()}
            for name, own in correlations(scores, truth).items()
        },
    }


def _judge(
    job: Run, counts: list[int], methods: list[str]
) -> Callable[[tuple[int, ...]], tuple[Scores, Scores]]:
    """Return a function from widths to scores on parts of the search's images, and on the test images."""
    evaluator, test = job.problem.evaluator(), job.problem.splits.test()
    whole = LabelledImages(evaluator.images, evaluator.labels)
    sizes = sorted({min(count, len(whole)) for count in (*counts, len(whole))})
    chosen = {str(n): torch.arange(n) for n in sizes}
    dense = outputs(job.problem.dense, whole.images, evaluator.batch_size) if methods else whole.labels
    for method in methods:
        chosen |= {f"{n} by {method}": choose(method, whole.labels, dense, n) for n in sizes[:-1]}
    parts = {
        name: (index, evaluator.on(LabelledImages(whole.images[index], whole.labels[index])))
        for name, index in chosen.items()
    }
    on_test, batch = evaluator.on(test), evaluator.batch_size

    def judge(widths: tuple[int, ...]) -> tuple[Scores, Scores]:
        with evaluator.builder.network(widths) as model:
            found, other = outputs(model, whole.images, batch), outputs(model, on_test.images, batch)
        scores = {
            f"{name} on {images}": score
            for images, (index, part) in parts.items()
            for name, score in scores_of(part.judge(widths, found[index])).items()
        }
        return scores, scores_of(on_test.judge(widths, other))

    return judge
