"""Runs the ``amc`` command, in this process where possible, and reads what it leaves behind."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from amc.errors import AmcError
from experiments.config import schema
from experiments.main import main, prepare_hydra
from experiments.run.check import check
from experiments.run.run import open_run, set_up_process
from experiments.run.values import check_values

FAKE = (
    "data=fake", "data.image_size=8", "data.train=64", "data.search_val=32", "data.calibration=16",
    "data.test=32", "data.num_classes=4",
)  # fmt: skip
SMALL = (
    *FAKE, "train.epochs=1", "finetune.epochs=1", "agent.episodes=4", "agent.warmup_episodes=2",
    "latency.rounds=2", "latency.backends=[torch]",
)  # fmt: skip
TINY = (*SMALL, "model=mynet.make")
"""The smallest job: a user's factory from the current directory, see ``MYNET``."""

MYNET = """
import os
import signal
from pathlib import Path

import torch
from torch import nn

calls = 0

def score(evaluation):
    global calls
    calls += 1
    if (file := Path("interrupt")).exists():
        name, call = file.read_text().split()
        if calls == int(call):
            os.kill(os.getpid(), getattr(signal, name))
    return evaluation.agreement

def make(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )

def small_head():
    return make(2)

def linear(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))

class Functional(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = make(num_classes)
        self.register_buffer("mixing", torch.eye(num_classes))

    def forward(self, images):
        return torch.nn.functional.linear(self.body(images), self.mixing)

class Hidden(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = make(num_classes)

    def forward(self, images):
        with torch.no_grad():
            seen = torch.nn.functional.conv2d(self.body[:3](images), self.body[3].weight).mean((1, 2, 3))
        return self.body(images) + seen[:, None]

class Scaled(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = make(num_classes)
        self.register_buffer("scale", torch.arange(1.0, 9.0).view(1, 8, 1, 1))

    def forward(self, images):
        return self.body[3:](self.body[:3](images) * self.scale)

class Pair(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = make(num_classes)

    def forward(self, images):
        return self.body(images), images
"""


@dataclass(frozen=True)
class Outcome:
    """Exit status and output of one command."""

    status: int
    out: str
    err: str


def workspace(folder: Path) -> Path:
    """Put the user's module into ``folder``, the current directory of the commands to come."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mynet.py").write_text(MYNET)
    return folder


def interrupt(cwd: Path, call: int, name: str = "SIGINT") -> None:
    """Have ``reward=mynet.score`` send its own process this signal at its ``call``-th call."""
    (cwd / "interrupt").write_text(f"{name} {call}")


def amc(*arguments: str, cwd: Path) -> Outcome:
    """Run the command in this process as the console script would: ``cwd`` is not on the import path."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    before = set(sys.modules)
    with _isolated(), contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        sys.argv[:] = ["amc", *arguments]
        try:
            main()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except Exception:
            status = 1
            traceback.print_exc()
        finally:
            _forget_modules(cwd, before)
    return Outcome(status, out.getvalue(), err.getvalue())


def done(*arguments: str, cwd: Path) -> Outcome:
    """Run the command, which must succeed and be silent on stderr."""
    outcome = amc(*arguments, cwd=cwd)
    assert outcome.status == 0, outcome.err
    assert outcome.err == "", outcome.err
    return outcome


def refused(outcome: Outcome, *parts: str, status: int = 2) -> str:
    """Check that a command ended in one readable line on stderr that holds ``parts``; return the line."""
    assert "Traceback" not in outcome.err, outcome.err
    assert outcome.status == status, outcome
    assert outcome.err.count("\n") == 1, outcome.err
    assert outcome.err.startswith("amc: "), outcome.err
    for part in parts:
        assert part in outcome.err, outcome.err
    return outcome.err


def composed(*overrides: str) -> schema.Config:
    """Return the configuration that the command would run with."""
    prepare_hydra()
    with initialize_config_module("conf", version_base="1.3"):
        config = OmegaConf.to_object(compose("config", overrides=list(overrides)))
    assert isinstance(config, schema.Config)
    return config


def check_error(base: schema.Config, *overrides: str, cwd: Path) -> str:
    """Return the message with which the check before any work refuses ``base`` with other values.

    The command does the same twenty times as slowly. Neither groups nor new keys can be overridden.
    """
    changed = OmegaConf.structured(base)
    for override in overrides:
        key, _, value = override.partition("=")
        OmegaConf.update(changed, key, yaml.safe_load(value))
    config = OmegaConf.to_object(changed)
    assert isinstance(config, schema.Config)
    with inside(cwd):
        try:
            check_values(config)
            run = open_run(config, Path("run"))
            set_up_process(config)
            check(run)
        except AmcError as error:
            return str(error)
    raise AssertionError(f"not refused: {overrides}")


@contextlib.contextmanager
def inside(cwd: Path) -> Iterator[None]:
    """Be in the current directory of commands, with its modules on the import path."""
    before = set(sys.modules)
    with _isolated(), contextlib.chdir(cwd):
        sys.path.append("")
        try:
            yield
        finally:
            _forget_modules(cwd, before)


def spawn(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """Start the command as a process of its own."""
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.main", *arguments],
        cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def read_json(path: Path) -> Any:
    """Parse strictly: NaN and infinity are no JSON."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{path} holds {constant}")

    return json.loads(path.read_text(), parse_constant=refuse)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Parse a JSON-lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def timeless(path: Path) -> list[dict[str, Any]]:
    """Return the lines of ``search.jsonl`` without the one field that measures time."""
    return [{key: value for key, value in line.items() if key != "seconds"} for line in read_lines(path)]


def artifacts(folder: Path) -> dict[str, bytes]:
    """Return the files of a run folder, except the records of the last command itself."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and ".hydra" not in path.parts
        and path.name not in ("amc.log", "provenance.json", ".lock")
    }


@contextlib.contextmanager
def _isolated() -> Iterator[None]:
    """Undo what a command does to the process: arguments, environment, import path, signals, logging."""
    root = logging.getLogger()
    handlers, level, terminate = root.handlers[:], root.level, signal.getsignal(signal.SIGTERM)
    with (
        mock.patch.object(sys, "argv", []),
        mock.patch.object(sys, "path", sys.path[:]),
        mock.patch.dict(os.environ),
    ):
        os.environ.pop("HYDRA_FULL_ERROR", None)
        GlobalHydra.instance().clear()
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, terminate)
            for handler in set(root.handlers) - set(handlers):
                handler.close()
            root.handlers[:] = handlers
            root.setLevel(level)


def _forget_modules(folder: Path, before: set[str]) -> None:
    """Drop the user's own modules of ``folder`` and those beside it: other tests have the same names."""
    for name in set(sys.modules) - before:
        # Looked up in the module's dictionary: lazy modules import others when an attribute is asked for.
        file = vars(sys.modules[name]).get("__file__")
        if file is not None and Path(file).is_relative_to(folder.parent):
            del sys.modules[name]
    importlib.invalidate_caches()
