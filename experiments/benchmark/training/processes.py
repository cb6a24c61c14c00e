"""Images a second of several training processes: ``python -m experiments.benchmark processes --processes 2``.

A ResNet of CIFAR trains on synthetic images, each process with one thread, alone and together in turns. The
first epoch of each turn is left out. Wall-clock time counts, as processes wait for each other: the machine
has to be idle.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from typing import Any

import torch

from amc import data
from amc.errors import SettingError
from amc.models import ModelSpec, build
from amc.training.loop import train
from amc.training.settings import EpochRecord, TrainSettings
from experiments.benchmark.arguments import positive
from experiments.stages.networks.teaching import Source
from experiments.stages.networks.team import Job, team


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--processes", type=positive, default=2)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--images", type=positive, default=2048)
    parser.add_argument("--batch", type=positive, default=128, help="images of all processes together")
    parser.add_argument("--epochs", type=positive, default=4)
    parser.add_argument("--turns", type=positive, default=3)
    parser.add_argument("--sharded", action="store_true", help="weights in parts (FSDP2)")
    parser.add_argument("--own-norms", action="store_true", help="sync_norms=false")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; see the module's docstring.

    Raises:
        SettingError: there is nothing to compare.
    """
    if options.processes < 2 or options.epochs < 2 or options.turns < 1:
        raise SettingError("expected --processes and --epochs of 2 or more, and --turns of 1 or more")
    torch.set_num_threads(1)
    rates: dict[int, list[float]] = {1: [], options.processes: []}
    for turn in range(options.turns):
        for count, found in rates.items():
            found += _rates(options, count)
            print(
                f"turn {turn + 1} of {options.turns}: {count} processes, {found[-1]:.0f}/s", file=sys.stderr
            )
    alone, together = (statistics.median(found) for found in rates.values())
    return {
        **{key: value for key, value in vars(options).items() if key != "run"},
        "processors": os.cpu_count(),
        "images_per_second": {"one": alone, "together": together},
        "ratio": together / alone,
    }


def _rates(options: argparse.Namespace, count: int) -> list[float]:
    """Return the images a second of each epoch but the first."""
    about = {"name": "fake", "train": options.images, "batch_size": options.batch, "image_size": 32}
    splits = data.build(**about, seed=0)
    network = build(ModelSpec(options.model, splits.num_classes, splits.input_shape), trust_dotted_path=False)
    settings = TrainSettings(
        options.epochs,
        precision=options.precision,
        sharded=options.sharded and count > 1,
        sync_norms=not options.own_norms,
    )
    records: list[EpochRecord] = []
    job = Job(network, settings, 0, {**about, "seed": 0}, Source(), False, "cpu", 1)
    with team(count, lambda: job) as group:
        train(network, splits, settings, seed=0, group=group, on_epoch=records.append)
    return [options.images / record.seconds for record in records[1:]]
