"""A small finished run, and commands on copies of it, each in a fork of this process."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from amc.errors import AmcError
from experiments.command.messages import INTERNAL_ERROR

PACKAGES = str(Path(__file__).parents[3])
"""Folder of the packages, for ``PYTHONPATH`` of commands in another current directory."""
SECONDS = 300
"""Longest time of a command, without the time that it waits for a processor."""
NETWORK = """
from torch import nn

def make(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )
"""
JOB = (
    *("data=fake", "data.image_size=8", "data.train=64", "data.search_val=32", "data.calibration=16"),
    *("data.test=32", "data.num_classes=4", "model=faultsnet.make", "train.epochs=2", "finetune.epochs=2"),
    *(
        "agent=random",
        "agent.episodes=6",
        "budget.round_to=1",
        "correlate.policies=3",
        "latency.rounds=1",
        "threads=1",
    ),
    *(
        "latency.backends=[torch]",
        "latency.memory=false",
        "sparsify.densities=[0.5]",
        "export.formats=[onnx]",
    ),
)
STAGES = ("train", "search", "prune", "finetune", "compare", "correlate", "evaluate", "export", "report")
AGAIN = "stages=[search,prune,finetune,correlate,evaluate,report]"


@dataclass(frozen=True)
class Outcome:
    """Exit status of one command, negative for a signal, and its output."""

    status: int
    out: str
    err: str

    @property
    def fault(self) -> str | None:
        """What is wrong with a command that should end well or be refused in one line, or None."""
        if self.status == 0:
            return None if "Traceback" not in self.out + self.err else "a traceback"
        if self.status == -signal.SIGALRM:
            return f"no end within {SECONDS} s"
        if self.status == INTERNAL_ERROR:
            return self.err.strip()[:200]
        if self.err.count("\n") != 1 or not self.err.startswith("amc: "):
            lines = self.err.strip().splitlines() or [""]
            return f"status {self.status} with {len(lines)} lines, the last: {lines[-1][:200]}"
        return None


@dataclass(frozen=True)
class Bench:
    """Where faults are tried: every attempt gets a folder of its own below ``scratch``.

    ``kept`` holds by name what attempts share.
    """

    scratch: Path
    kept: dict[str, Any] = field(default_factory=dict)

    def warm(self) -> None:
        """Import what a short job needs, so that the forks need not.

        Raises:
            AmcError: the job fails.
        """
        self._made(self.empty("warm"), ("train",))

    @cached_property
    def finished(self) -> Path:
        """A current directory with the finished run ``run``; not to be changed.

        Raises:
            AmcError: the job fails.
        """
        return self._made(self.empty("finished"), STAGES)

    def _made(self, cwd: Path, stages: Sequence[str]) -> Path:
        ended = command([*JOB, f"stages=[{','.join(stages)}]", "run_dir=run"], cwd, learns=True)
        if ended.status != 0:
            raise AmcError(f"the job failed: {ended.err.strip()[-400:]}")
        return cwd

    def empty(self, name: str) -> Path:
        """Make a current directory that holds only the network."""
        cwd = self.scratch / name
        shutil.rmtree(cwd, ignore_errors=True)
        cwd.mkdir(parents=True)
        (cwd / "faultsnet.py").write_text(NETWORK)
        return cwd

    def copy(self) -> Path:
        """Return a copy of ``finished`` to work in; it replaces the last one."""
        finished, cwd = self.finished, self.scratch / "copy"
        shutil.rmtree(cwd, ignore_errors=True)
        return shutil.copytree(finished, cwd)


class Absent(Exception):  # noqa: N818
    """There is no such fault: it is not counted as tried."""


Attempt = Callable[[Bench], str | None]
"""Tries a fault; returns what was wrong, or None; raises `Absent`."""


@dataclass(frozen=True)
class Fault:
    """One fault of the catalogue."""

    kind: str
    name: str
    attempt: Attempt


def command(
    arguments: Sequence[str],
    cwd: Path,
    before: Callable[[], None] = lambda: None,
    seconds: int = SECONDS,
    learns: bool = False,
) -> Outcome:
    """Run the command in a fork of this process.

    Args:
        arguments: of ``amc``.
        cwd: current directory.
        before: called in the fork before the command.
        seconds: after which it is killed; see ``SECONDS``.
        learns: import the modules that the fork has loaded at its end, so that later forks need not.
    """
    loaded = cwd.parent / "modules" if learns else None
    process, out, err = _start(arguments, cwd, before, loaded)
    start = time.monotonic()
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            if loaded is not None and loaded.exists():
                _import(loaded.read_text().split())
            return Outcome(os.waitstatus_to_exitcode(status), _text(out), _text(err))
        if time.monotonic() - start - _waited(process) > seconds:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return Outcome(-signal.SIGALRM, _text(out), _text(err))
        time.sleep(0.01)


def _waited(process: int) -> float:
    """Return the seconds that a process has waited for a processor, 0 where the system does not tell."""
    try:
        return int(Path(f"/proc/{process}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _import(names: Sequence[str]) -> None:
    for name in names:
        with suppress(Exception):
            importlib.import_module(name)


def _start(
    arguments: Sequence[str], cwd: Path, before: Callable[[], None], loaded: Path | None
) -> tuple[int, Path, Path]:
    """Start the command in a fork; return its process id and the files of its output."""
    import torch

    import experiments.main  # the forks need not import it

    torch.set_num_threads(1)
    out, err = cwd.parent / "stdout", cwd.parent / "stderr"
    process = os.fork()
    if process == 0:
        status = 1
        try:
            os.chdir(cwd)
            for descriptor, path in ((1, out), (2, err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
            sys.stdout = os.fdopen(1, "w", closefd=False)
            sys.stderr = os.fdopen(2, "w", closefd=False)
            sys.argv = ["amc", *arguments]
            before()
            experiments.main.main()
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            if loaded is not None:
                loaded.write_text("\n".join(name for name in sys.modules if name != "faultsnet"))
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except OSError:
                    status = status or 1
            os._exit(status)
    return process, out, err


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def results(folder: Path) -> dict[str, bytes]:
    """Return the files of a run that the same job gives to the byte."""
    names = ("dense", "pruned", "model", "sparse")
    found = {path.name: path.read_bytes() for name in names for path in folder.glob(f"{name}.safetensors")}
    for name in ("strategy.json",):
        if (folder / name).exists():
            found[name] = (folder / name).read_bytes()
    return found
