from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from amc.errors import AmcError
from experiments.command import lock
from experiments.command.lock import locked
from tests.experiments.helpers import TINY, amc, done, refused

HOLDER = """
import os, sys, time
from pathlib import Path
from experiments.command.lock import locked
with locked(Path("run")):
    if "fork" in sys.argv and os.fork() == 0:
        print("ready", os.getpid(), flush=True)
        time.sleep(60)
        os._exit(0)
    if "fork" not in sys.argv:
        print("ready", os.getpid(), flush=True)
    time.sleep(60)
"""


def start(cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", HOLDER, *arguments]
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.fixture(params=["alone", "fork"])
def holder(request: pytest.FixtureRequest, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that works in the folder "run"; with "fork" it has a child that outlives it."""
    process = start(cwd, request.param)
    assert process.stdout is not None
    last = int(process.stdout.readline().split()[1])
    yield process
    for number in {process.pid, last}:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    process.communicate()


def test_a_second_process_is_refused_in_one_line_and_changes_nothing(
    holder: subprocess.Popen[str], cwd: Path
) -> None:
    refused(amc(*TINY, "run_dir=run", cwd=cwd), "another process works in run")
    assert os.listdir(cwd / "run") == [lock.FILE]
    holder.kill()  # SIGKILL: no handler runs, and the forked child lives on
    holder.wait()
    done(*TINY, "stages=[train]", "run_dir=run", cwd=cwd)


def test_a_folder_is_given_back_after_any_end(cwd: Path) -> None:
    refused(amc(*TINY, "run_dir=run", "budget.macs_ratio=0.0001", cwd=cwd), "budget.macs_ratio")
    done(*TINY, "run_dir=run", "stages=[train]", cwd=cwd)
    with locked(cwd / "run"):
        pass


@pytest.mark.slow
def test_a_folder_of_several_budgets_and_each_of_its_parts_is_locked(cwd: Path) -> None:
    job = (*TINY, "run_dir=run", "stages=[train,search]", "agent=greedy", "budget.macs_ratios=[0.5,0.7]")
    with locked(cwd / "run/macs_0.70"):
        refused(amc(*job, cwd=cwd), "another process works in", "macs_0.70")
    assert (cwd / "run/macs_0.50/strategy.json").exists()
    done(*job, cwd=cwd)
    assert (cwd / "run/macs_0.70/strategy.json").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_work_goes_on_without_a_lock_on_a_file_system_that_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with locked(tmp_path), locked(tmp_path):
        worked = (tmp_path / lock.FILE).exists()
    assert worked


def test_work_goes_on_without_a_lock_where_no_file_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with locked(tmp_path / "file"), locked(tmp_path / "file"):
        worked = (tmp_path / "file").read_text()
    assert worked == "not a folder"


def test_a_lock_is_held_until_the_end(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(AmcError, match="another process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
