from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
from hydra.errors import MissingConfigException

from amc.errors import AmcError
from experiments.command.command import Command, Refused
from experiments.command.lock import locked
from experiments.command.messages import INTERNAL_ERROR, message, one_line
from tests.experiments.helpers import TINY, amc, refused, workspace


@pytest.mark.parametrize("before", [None, "0", "1"])
def test_the_environment_is_restored(monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    if before is not None:
        monkeypatch.setenv("HYDRA_FULL_ERROR", before)
    with suppress(KeyboardInterrupt), Command().running():
        assert os.environ["HYDRA_FULL_ERROR"] == "1"
        raise KeyboardInterrupt
    assert os.environ.get("HYDRA_FULL_ERROR") == before


def test_a_folder_is_locked_until_the_command_ends(tmp_path: Path) -> None:
    command = Command()
    with command.running():
        command.lock(tmp_path)
        with pytest.raises(AmcError, match="another process"), locked(tmp_path):
            pass
        with pytest.raises(Refused, match="another process"):
            Command().lock(tmp_path)
    with locked(tmp_path):
        pass


def test_an_error_of_the_job_is_held_back() -> None:
    command = Command()
    with command.keep_errors():
        raise KeyError("ours")
    with pytest.raises(KeyError, match="ours"):
        command.raise_error()


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), AmcError("ours")])
def test_hydra_adds_no_line_to_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    def check(*_: object) -> None:
        raise error

    monkeypatch.setattr("experiments.main.check_values", check)
    outcome = amc("run_dir=run", cwd=tmp_path)
    assert outcome.err.count("\n") == 1


def test_messages_are_one_line() -> None:
    assert message(AmcError("as it is")) == "as it is"
    assert message(PermissionError(13, "Permission denied", "run")) == "cannot use run: Permission denied"
    assert message(OSError("ours")) is None
    assert message(KeyError("ours")) is None
    missing = MissingConfigException("no workers/thread\n\n  Available:\n\tserial")  # an OSError, too
    assert message(missing) == "bad configuration: no workers/thread Available: serial"
    assert one_line(" a\n\tb  c ") == "a b c"


@pytest.mark.parametrize("error", [KeyError("lost"), OSError("lost"), RuntimeError("lost")])
def test_a_fault_of_the_package_is_one_line_and_its_traceback_is_in_the_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("experiments.job.run_job", fail)
    outcome = amc(*TINY, "run_dir=run", cwd=workspace(tmp_path))
    refused(outcome, f"internal error, {type(error).__name__}: ", "lost", "amc.log", status=INTERNAL_ERROR)
    assert "Traceback" in (tmp_path / "run" / "amc.log").read_text()


def test_a_fault_before_a_folder_is_locked_ends_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*arguments: object) -> None:
        raise KeyError("lost")

    monkeypatch.setattr("experiments.command.command.absent", fail)
    for job in (("run_dir=run",), ("-m", "hydra.sweep.dir=run")):
        outcome = amc(*job, cwd=tmp_path)
        refused(outcome, "internal error, KeyError: 'lost'", status=INTERNAL_ERROR)
        assert not (tmp_path / "run").exists()


def test_a_multirun_ends_with_its_output(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    jobs = []

    def close(*arguments: object) -> None:
        jobs.append(arguments)
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("experiments.main.check_values", close)
    outcome = amc("-m", "seed=0,1,2", "hydra.sweep.dir=many", cwd=tmp_path)
    line = refused(outcome, "the reader of the output has closed it", status=141)
    assert line.endswith(f"the same command with hydra.sweep.dir={tmp_path}/many goes on\n")
    assert len(jobs) == 1
