"""A long search: memory, time per episode and sizes of files: ``python -m experiments.benchmark soak``.

A search of a small network runs in a process of its own. Its memory, its CPU time and the sizes of its files
are read at every hundredth part. Memory and the time of an episode should stay flat, and files grow by the
same amount. With ``--workers`` two processes evaluate: one is killed after a third of the episodes, one is
stopped for ever after two thirds, and the search must record every episode all the same.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from amc.errors import AmcError
from experiments.benchmark.arguments import at_least, positive
from experiments.benchmark.faults.bench import PACKAGES
from experiments.run.folder import RunFolder

PARTS = 100
POLL_SECONDS = 0.05
HANGING_SECONDS = 60
"""After which a worker hangs; on a loaded machine its start takes half of it."""
NETWORK = """
from torch import nn

def make(num_classes):
    layers, widths = [], (3, 12, 16, 16, 24, 24)
    for index, (before, after) in enumerate(zip(widths, widths[1:])):
        conv = nn.Conv2d(before, after, 3, 1 + index % 2, 1, bias=False)
        layers += [conv, nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, num_classes))
"""
JOB = (
    *("data=fake", "data.image_size=8", "data.num_classes=4", "data.train=64", "data.search_val=32"),
    *("data.calibration=32", "data.test=16", "train.epochs=1", "model=soaked.make", "budget.round_to=1"),
    *("threads=1", "stages=[train,search]", "run_dir=run"),
)


@dataclass(frozen=True)
class Sample:
    """What a search holds after a number of episodes: MiB, CPU seconds of its process, bytes of files."""

    episodes: int
    memory_mib: float
    cpu_seconds: float
    search_bytes: int
    evaluations_bytes: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--episodes", type=positive, default=10_000)
    parser.add_argument("--warm-up", type=at_least(0), default=1_000, help="episodes not compared")
    parser.add_argument("--agents", nargs="+", default=["random", "ddpg"])
    parser.add_argument("--workers", action="store_true", help="with two workers: one dies, one hangs")
    parser.add_argument("overrides", nargs="*", help="of the search, as amc takes them")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the searches; see the module's docstring.

    Raises:
        AmcError: a search fails or loses episodes, or it is too short to compare anything.
    """
    if options.episodes < 2 * options.warm_up or options.warm_up < PARTS:
        raise AmcError(
            f"--episodes is {options.episodes} with --warm-up {options.warm_up}; expected a warm-up of at "
            f"least {PARTS}, and twice as many episodes"
        )
    pool = ("workers=process", "workers.count=2", f"workers.timeout={HANGING_SECONDS}")
    given = [f"agent.episodes={options.episodes}", *(pool if options.workers else ()), *options.overrides]
    found = {}
    for agent in options.agents:
        with tempfile.TemporaryDirectory() as scratch:
            samples = list(_search(Path(scratch), [*JOB, *given, f"agent={agent}"], options))
        found[agent] = _summary([each for each in samples if each.episodes >= options.warm_up])
    return {"episodes": options.episodes, "agents": found}


def _search(cwd: Path, arguments: Sequence[str], options: argparse.Namespace) -> Iterator[Sample]:
    """Run a search and yield samples.

    Raises:
        AmcError: it fails, or has other than the asked episodes.
    """
    (cwd / "soaked.py").write_text(NETWORK)
    folder, step = RunFolder(cwd / "run"), options.episodes // PARTS
    harm = iter(_harms(options.episodes) if options.workers else [])
    due = next(harm, None)
    with (cwd / "errors").open("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "experiments.main", *arguments], cwd=cwd,
            env={**os.environ, "PYTHONPATH": PACKAGES},
            stdout=subprocess.DEVNULL, stderr=errors,
        )  # fmt: skip
        done = itertools.count(step, step)
        awaited = next(done)
        while process.poll() is None:
            episodes = _lines(folder.search)
            if due is not None and episodes >= due[0] and (workers := _children(process.pid)):
                os.kill(workers[-1], due[1])
                due = next(harm, None)
            if episodes >= awaited and (sample := _sample(process.pid, folder, episodes)) is not None:
                yield sample
                awaited = next(each for each in done if each > episodes)
            time.sleep(POLL_SECONDS)
        errors.seek(0)
        if process.returncode:
            raise AmcError(f"the search failed: {errors.read().strip()[-400:]}")
    if (episodes := _lines(folder.search)) != options.episodes or due is not None:
        raise AmcError(f"the search recorded {episodes} of {options.episodes} episodes; harm to do: {due}")


def _harms(episodes: int) -> list[tuple[int, signal.Signals]]:
    return [(episodes // 3, signal.SIGKILL), (2 * episodes // 3, signal.SIGSTOP)]


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _sample(process: int, folder: RunFolder, episodes: int) -> Sample | None:
    """Return what a process and its run folder hold, or None if the process has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text().splitlines()
        memory = next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))
        times = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    except (OSError, StopIteration):
        return None
    seconds = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
    return Sample(episodes, memory / 1024, seconds, _size(folder.search), _size(folder.evaluations))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _children(process: int) -> list[int]:
    """Return the processes that evaluate for a process: those that its threads started, the youngest last."""
    found = []
    for thread in Path(f"/proc/{process}/task").iterdir():
        with suppress(OSError):  # it has ended meanwhile
            found += [int(each) for each in (thread / "children").read_text().split()]
    return sorted(each for each in found if b"spawn_main" in _command_line(each))


def _command_line(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def _summary(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return how memory, time and files grow; ratios are to the first of ``samples``."""
    if len(samples) < 4:
        raise AmcError(f"got {len(samples)} samples, expected at least 4: the search was too fast to follow")
    first, last, middle = samples[0], samples[-1], samples[len(samples) // 2]
    early, late = _per_episode(first, middle), _per_episode(middle, last)
    return {
        "memory_mib": [round(first.memory_mib, 1), round(last.memory_mib, 1)],
        "memory_ratio": max(each.memory_mib for each in samples) / first.memory_mib,
        "cpu_ms_per_episode": [1000 * early.cpu_seconds, 1000 * late.cpu_seconds],
        "search_bytes_per_episode": [early.search_bytes, late.search_bytes],
        "evaluations_bytes_per_episode": [early.evaluations_bytes, late.evaluations_bytes],
        "samples": [asdict(each) for each in samples[:: max(1, len(samples) // 10)]],
    }


@dataclass(frozen=True)
class _Rates:
    cpu_seconds: float
    search_bytes: float
    evaluations_bytes: float


def _per_episode(one: Sample, other: Sample) -> _Rates:
    count = other.episodes - one.episodes
    return _Rates(
        *(
            (getattr(other, name) - getattr(one, name)) / count
            for name in ("cpu_seconds", "search_bytes", "evaluations_bytes")
        )
    )
