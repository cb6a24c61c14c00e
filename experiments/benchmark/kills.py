"""Killed and resumed searches against an unbroken one: ``python -m experiments.benchmark kills --kills 20``.

A small job (digits) is run once to its end. Then it is started many times in folders of its own, killed with
SIGKILL at a random moment and started a second time with the same command. The strategy, the episodes except
their times, the agent's weights and the pruned and fine-tuned networks must be the same to the byte.

A moment is a number of recorded episodes and a time after them, so that a busy machine does not shift it. The
kills fall in turn before the first episode, at a random episode, and after the last.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from amc.errors import AmcError
from experiments.benchmark.arguments import positive
from experiments.run.folder import RunFolder

JOB = ("agent.episodes=60", "finetune.epochs=2", "threads=1")
STAGES = "stages=[search,prune,finetune]"
POLL_SECONDS = 0.005


class Moment(NamedTuple):
    """When to kill: ``seconds`` after ``episodes`` are on disk."""

    episodes: int
    seconds: float


class Timeline(NamedTuple):
    """When the unbroken run recorded its first and its last episode, and when it ended, in seconds."""

    episodes: int
    first: float
    last: float
    end: float

    def moment(self, number: int, draws: random.Random) -> Moment:
        """Return the ``number``-th moment: before, within and after the search in turn."""
        episode = (self.last - self.first) / max(1, self.episodes - 1)
        within = draws.randint(1, max(1, self.episodes - 1))
        awaited, span = ((0, self.first), (within, episode), (self.episodes, self.end - self.last))[
            number % 3
        ]
        return Moment(awaited, draws.uniform(0, span))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--kills", type=positive, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of the job")
    parser.add_argument("overrides", nargs="*", help="of the job, as amc takes them")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Kill and compare; see the module's docstring.

    Raises:
        AmcError: The job itself fails.
    """
    draws = random.Random(options.seed)
    job = [*JOB, f"seed={options.seed}", *options.overrides]
    with tempfile.TemporaryDirectory() as scratch:
        trained = Path(scratch) / "trained"
        _finish([*job, "stages=[train]", f"run_dir={trained}"])
        whole = shutil.copytree(trained, Path(scratch) / "whole")
        timeline = _timeline([*job, STAGES, f"run_dir={whole}"], whole)
        expected = _results(whole)
        rows = []
        for number in tqdm(range(options.kills), desc="kills", disable=None):
            broken = Path(scratch) / f"broken_{number}"
            command = [*job, STAGES, f"run_dir={broken}"]
            moment, done = _broken(command, trained, broken, timeline.moment(number, draws), draws)
            _finish(command)
            results = _results(broken)
            differs = sorted(name for name in expected if results.get(name) != expected[name])
            rows.append(
                {"after_seconds": round(moment.seconds, 2), "episodes_done": done, "differs": differs}
            )
            shutil.rmtree(broken)
    return {
        "kills": len(rows),
        "identical": sum(not row["differs"] for row in rows),
        "unbroken_seconds": {name: round(getattr(timeline, name), 2) for name in ("first", "last", "end")},
        "compared": sorted(expected),
        "runs": rows,
    }


def _broken(
    command: list[str], trained: Path, folder: Path, moment: Moment, draws: random.Random
) -> tuple[Moment, int]:
    """Run a job until it is killed; return the moment of that and the number of recorded episodes."""
    shutil.copytree(trained, folder)
    while not _kill(command, folder, moment):  # this time the job ended before the moment
        shutil.rmtree(folder)
        shutil.copytree(trained, folder)
        moment = Moment(moment.episodes, draws.uniform(0, moment.seconds))
    return moment, _episodes(folder)


def _command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "experiments.main", *arguments]


def _finish(arguments: list[str]) -> None:
    done = subprocess.run(_command(arguments), capture_output=True, text=True)
    if done.returncode:
        raise AmcError(f"the job failed with status {done.returncode}: {done.stderr.strip()[-400:]}")


def _timeline(arguments: list[str], folder: Path) -> Timeline:
    """Run a job to its end and return when its episodes were recorded."""
    start = time.perf_counter()
    first = last = 0.0
    count = 0
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(_command(arguments), stdout=subprocess.DEVNULL, stderr=errors)
        while process.poll() is None:
            if (found := _episodes(folder)) > count:
                last = time.perf_counter() - start
                first, count = first or last, found
            time.sleep(POLL_SECONDS)
        if process.returncode:
            errors.seek(0)
            raise AmcError(f"the job failed with status {process.returncode}: {errors.read().strip()[-400:]}")
    return Timeline(count, first, last, time.perf_counter() - start)


def _kill(arguments: list[str], folder: Path, moment: Moment) -> bool:
    """Start a job and kill it at a moment; return whether it was still running."""
    process = subprocess.Popen(_command(arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while _episodes(folder) < moment.episodes and process.poll() is None:
        time.sleep(POLL_SECONDS)
    try:
        process.wait(moment.seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    return process.wait() < 0


def _episodes(folder: Path) -> int:
    log = RunFolder(folder).search
    return log.read_bytes().count(b"\n") if log.exists() else 0


def _results(folder: Path) -> dict[str, Any]:
    """Return all results that must be the same, comparable with ``==``."""
    files = RunFolder(folder)
    equal_bytes = (files.strategy, files.pruned, files.model)
    found: dict[str, Any] = {path.name: path.read_bytes() for path in equal_bytes}
    lines = [json.loads(line) for line in files.search.read_text().splitlines()]
    found[files.search.name] = [{key: line[key] for key in line if key != "seconds"} for line in lines]
    if files.agent.exists():
        with zipfile.ZipFile(files.agent) as archive, archive.open("policy.pth") as file:
            weights = torch.load(file, weights_only=True)
        found[files.agent.name] = {name: tensor.tolist() for name, tensor in weights.items()}
    return found
