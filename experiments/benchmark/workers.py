"""Gain by workers: ``python -m experiments.benchmark workers --model resnet56 --images 1000 --workers 2``.

Evaluations per minute of wall clock are measured serially in this process with one thread, and with workers
of one thread each. Both evaluate the same random widths in alternating rounds. Every round draws new widths.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from amc.candidate.builder import CandidateBuilder
from amc.candidate.evaluator import Evaluator, channel_evaluator
from amc.candidate.settings import CandidateSettings
from amc.data import LabelledImages
from amc.graph.layers import noise_image
from amc.graph.trace import trace
from amc.models import ModelSpec, build
from amc.result import Evaluation
from amc.workers.pool import WorkerPool, open_pool
from amc.workers.settings import WorkerSettings
from experiments.benchmark.arguments import positive

Widths = Sequence[int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line of ``workers``."""
    parser.add_argument("--model", default="resnet56", help="any name that amc's model= takes")
    parser.add_argument("--resolution", type=positive, default=32, help="image side in pixels")
    parser.add_argument("--images", type=positive, default=1000, help="validation images per evaluation")
    parser.add_argument("--calibration", type=positive, default=500, help="calibration images")
    parser.add_argument("--workers", type=positive, default=2)
    parser.add_argument("--kind", choices=("process", "ray"), default="process")
    parser.add_argument("--evaluations", type=positive, default=12, help="per round")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure both; see the module's docstring.

    Raises:
        AmcError: The model or the worker settings are wrong.
    """
    settings = WorkerSettings(options.kind, options.workers)
    torch.set_num_threads(1)
    compressor = _compressor(options)
    start = time.perf_counter()
    with closing(open_pool(compressor, settings, lambda line: print(line, file=sys.stderr))) as pool:
        started = time.perf_counter() - start
        rounds = _alternate(compressor, pool, options)
    serial, parallel = (statistics.median(column) for column in zip(*rounds, strict=True))
    return {
        "model": options.model,
        "resolution": options.resolution,
        "images": options.images,
        "kind": options.kind,
        "workers": options.workers,
        "cpus": os.cpu_count(),
        "seed": options.seed,
        "torch": torch.__version__,
        "rounds": len(rounds),
        "evaluations_per_round": options.evaluations,
        "start_seconds": started,
        "serial_per_minute": 60 * options.evaluations / serial,
        "workers_per_minute": 60 * options.evaluations / parallel,
        "ratio": statistics.median(one / many for one, many in rounds),
        "ratios": [one / many for one, many in rounds],
    }


def _compressor(options: argparse.Namespace) -> Evaluator[CandidateBuilder]:
    torch.manual_seed(options.seed)
    shape = (3, options.resolution, options.resolution)
    model = build(ModelSpec(options.model, 10, shape), trust_dotted_path=True).eval()
    graph = trace(model, noise_image(model, shape))
    return channel_evaluator(
        model,
        graph,
        _random_images(options.calibration, shape),
        _random_images(options.images, shape),
        CandidateSettings(),
    )


def _random_images(count: int, shape: tuple[int, ...]) -> LabelledImages:
    return LabelledImages(torch.randn(count, *shape), torch.randint(0, 10, (count,)))


def _alternate(
    evaluator: Evaluator[CandidateBuilder], pool: WorkerPool, options: argparse.Namespace
) -> list[tuple[float, float]]:
    """Return the wall-clock seconds of every round, serial and with workers, without a first to warm up."""
    rng = np.random.default_rng(options.seed)
    dense = np.array(evaluator.builder.graph.dense_widths)
    seconds = []
    for _ in tqdm(range(1 + options.rounds), desc="rounds", disable=None):
        widths = rng.integers(-(-dense // 5), dense, endpoint=True, size=(options.evaluations, len(dense)))
        many, found = _parallel(pool, widths.tolist(), options.workers)
        one, expected = _serial(evaluator, widths.tolist())
        assert found == expected, "workers and a single process must agree to the bit"
        seconds.append((one, many))
    return seconds[1:]


def _parallel(pool: WorkerPool, widths: list[Widths], workers: int) -> tuple[float, list[Evaluation]]:
    with ThreadPoolExecutor(workers) as threads:
        start = time.perf_counter()
        found = list(threads.map(pool.evaluate, widths))
        return time.perf_counter() - start, found


def _serial(evaluator: Evaluator[CandidateBuilder], widths: list[Widths]) -> tuple[float, list[Evaluation]]:
    """Evaluate in this process, without the remembered evaluations of the workers."""
    start = time.perf_counter()
    found = [evaluator.judge(each, evaluator.outputs(each)) for each in widths]
    return time.perf_counter() - start, found
