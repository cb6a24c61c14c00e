"""Which score on the search's images predicts test scores: ``... benchmark proxies OVERRIDE ...``.

The overrides describe the problem as they do for ``amc``. Networks within the budget are drawn around the
greedy allocation, so that they are as similar as those that a search compares. Each is judged as in a search,
by every score on several numbers of images, and on the test images. The result is Spearman's rank correlation
of each score with the test scores. Remedies for search images that the dense network knows by heart can be
tried beside them: ``--select`` has the dense network choose the smaller numbers of images (``data.select``),
``--mixed`` judges on mixtures of two images, and ``--halves`` ranks the networks on each half of the images
and takes the worse of a network's two ranks.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import rankdata
from tqdm import tqdm

from amc.data import LabelledImages
from amc.data.selection import METHODS, choose
from amc.errors import AmcError
from amc.scoring.run import outputs
from experiments.benchmark.arguments import above_zero, positive
from experiments.benchmark.problem import open_trained
from experiments.run.proxies import correlations, scores_of, similar_networks
from experiments.run.run import Run
from experiments.run.values import LEAST_NETWORKS

Scores = dict[str, float]
Parts = dict[str, torch.Tensor]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("overrides", nargs="*", help="of the configuration")
    parser.add_argument("--networks", type=positive, default=30)
    parser.add_argument(
        "--spread", type=above_zero, default=0.2, help="standard deviation of a preserve ratio's logarithm"
    )
    parser.add_argument(
        "--images",
        type=positive,
        nargs="+",
        default=[500, 1000],
        help="numbers of search images, beside all",
    )
    parser.add_argument("--select", nargs="*", default=[], choices=METHODS, help="ways to choose them")
    parser.add_argument("--mixed", action="store_true", help="judge mixtures of two images too")
    parser.add_argument("--halves", action="store_true", help="ask that both halves of the images agree")


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
        job = open_trained(Path(folder), *options.overrides)
        images = _search_images(job)
        parts = _parts(options, job, images)
        judge = _judge(job, parts, _followed_by_mixtures(images) if options.mixed else images)
        networks = similar_networks(job, options.networks, options.spread)
        judged = [judge(widths) for widths in tqdm(networks, disable=None)]
        job.problem.release()
    scores, truth = [own for own, _ in judged], [other for _, other in judged]
    if options.halves:
        scores = _agreed(scores)
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
    job: Run, parts: Parts, images: LabelledImages
) -> Callable[[tuple[int, ...]], tuple[Scores, Scores]]:
    """Return a function from widths to the scores on parts of the images, and on the test images."""
    evaluator, test = job.problem.evaluator(), job.problem.splits.test()
    on_parts = {
        name: (index, evaluator.on(LabelledImages(images.images[index], images.labels[index])))
        for name, index in parts.items()
    }
    on_test, batch = evaluator.on(test), evaluator.batch_size

    def judge(widths: tuple[int, ...]) -> tuple[Scores, Scores]:
        with evaluator.builder.network(widths) as model:
            found, other = outputs(model, images.images, batch), outputs(model, on_test.images, batch)
        scores = {
            f"{name} on {where}": score
            for where, (index, part) in on_parts.items()
            for name, score in scores_of(part.judge(widths, found[index])).items()
        }
        return scores, scores_of(on_test.judge(widths, other))

    return judge


def _search_images(job: Run) -> LabelledImages:
    evaluator = job.problem.evaluator()
    return LabelledImages(evaluator.images, evaluator.labels)


def _followed_by_mixtures(images: LabelledImages) -> LabelledImages:
    """Return the images, and behind them the mean of each and the next one, with the label of the first.

    The label is not that of the picture: mixtures are for the scores that compare with the dense network,
    agreement and likeness.
    """
    mixed = (images.images + images.images.roll(-1, 0)) / 2
    return LabelledImages(torch.cat([images.images, mixed]), images.labels.repeat(2))


def _parts(options: argparse.Namespace, job: Run, images: LabelledImages) -> Parts:
    """Return the images of each part by name, as indices into the images and, behind them, their mixtures."""
    every, total = torch.arange(len(images)), len(images)
    sizes = sorted({min(count, total) for count in (*options.images, total)})
    parts = {str(n): every[:n] for n in sizes}
    if options.select:
        dense = outputs(job.problem.dense, images.images, job.problem.evaluator().batch_size)
        for method in options.select:
            parts |= {f"{n} by {method}": choose(method, images.labels, dense, n) for n in sizes[:-1]}
    if options.mixed:
        parts |= {f"{n} mixed": every[:n] + total for n in sizes}
    if options.halves:
        parts |= {f"{n}, half {half}": every[half - 1 : n : 2] for n in sizes for half in (1, 2)}
    return parts


def _agreed(scores: Sequence[Scores]) -> list[Scores]:
    """Replace the scores on two halves by the worse of the network's two ranks; the worst network's is 1."""
    first = [name for name in scores[0] if name.endswith(", half 1")]
    second = {name: name.removesuffix("1") + "2" for name in first}
    ranks = {name: rankdata([own[name] for own in scores]) for pair in second.items() for name in pair}
    return [
        {name: score for name, score in own.items() if name not in ranks}
        | {
            f"{name.removesuffix(', half 1')}, worse half": float(min(ranks[name][i], ranks[other][i]))
            for name, other in second.items()
        }
        for i, own in enumerate(scores)
    ]
