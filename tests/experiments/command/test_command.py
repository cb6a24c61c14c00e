from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
from hydra.errors import MissingConfigException

from amc.errors import AmcError
from experiments.command.command import Command, Refused
from experiments.command.lock import locked
from experiments.command.messages import message, one_line


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
        raise FileNotFoundError(2, "No such file", "x.pth")
    with pytest.raises(AmcError, match=r"cannot use x\.pth: No such file"):
        command.raise_error()
    with pytest.raises(OSError, match="ours"), Command().keep_errors():
        raise OSError("ours")


def test_messages_are_one_line() -> None:
    assert message(AmcError("as it is")) == "as it is"
    assert message(PermissionError(13, "Permission denied", "run")) == "cannot use run: Permission denied"
    missing = MissingConfigException("no workers/thread\n\n  Available:\n\tserial")  # an OSError, too
    assert message(missing) == "bad configuration: no workers/thread Available: serial"
    assert one_line(" a\n\tb  c ") == "a b c"
