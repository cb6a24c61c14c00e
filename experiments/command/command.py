"""One call of ``amc``, around Hydra."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write

from amc.errors import GOES_ON, AmcError
from experiments.command.lock import locked
from experiments.command.memory.content import FILE
from experiments.command.memory.identity import begin
from experiments.command.memory.remembered import check_named, check_overrides, run_dir
from experiments.command.messages import FULL_ERROR
from experiments.command.multirun import Sweep
from experiments.command.overrides import config_options, key_of, of_job
from experiments.command.tidy import absent, check_links, remove_temporary, remove_unused

_ENVIRONMENT = {FULL_ERROR: "1", "PYTHONSAFEPATH": "1"}
"""With the second one, other processes of this command import nothing from the current directory."""


class Refused(BaseException):
    """Carries the message of an `AmcError` out of one of Hydra's callbacks; see `Command`."""


class Carried(BaseException):
    """Carries an error out of Hydra, which makes a warning of a callback's, and goes on after that of a job.

    Attributes:
        error: what `Command.running` raises in its place.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


@contextmanager
def _carried() -> Iterator[None]:
    """End the command at any error of the block, which Hydra calls."""
    try:
        yield
    except Exception as error:
        raise Carried(error) from error


class Command:
    """One call of ``amc`` in this process: the folders it locks and the errors it keeps away from Hydra.

    Hydra runs between ``main`` and the job and passes no object on. It forces four detours, all of them here:

    - Hydra makes its callbacks itself, from a name in the configuration. `Folders` therefore finds the
      command as ``Command.current``, and its locks last until `running` ends.
    - Hydra turns an `Exception` of a callback into a warning, and goes on without what the callback does. One
      that refuses raises `Refused`, any other error is `Carried`: both are `BaseException`.
    - Hydra prints several lines about an error of a job. `keep_errors` holds it back, and `raise_error`
      raises it once Hydra has returned.
    - Hydra prints errors of the configuration and exits, unless ``HYDRA_FULL_ERROR`` is set: then it raises
      them. `running` sets it; ``wants_traceback`` says whether the user had set it.

    ``is_new`` says whether the run folder was empty before this command, and ``folder`` which it is.

    The jobs of a multirun may run in other processes. There is no command there: such jobs leave notes
    (`multirun.record_failure`).
    """

    current: ClassVar[Command]

    def __init__(self, paths: Collection[str] = ()) -> None:
        self._paths = paths
        self.is_new = False
        self.folder: Path | None = None
        self.wants_traceback = bool(os.environ.get(FULL_ERROR))
        self.sweep: Sweep | None = None
        self._error: Exception | None = None
        self._made: list[Path] = []
        self._locks = ExitStack()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Be the current command; unlock its folders and restore the environment at any end.

        Errors of logging are not shown: Hydra's lines about jobs, written to a closed output, would be one
        traceback each.
        """
        before = {name: os.environ.get(name) for name in _ENVIRONMENT}
        shows_errors = logging.raiseExceptions
        os.environ.update(_ENVIRONMENT)
        logging.raiseExceptions = False
        Command.current = self
        try:
            with self._locks:
                yield
        except Carried as carried:
            raise carried.error from carried.error.__cause__
        finally:
            logging.raiseExceptions = shows_errors
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def claim(self, folder: Path, overrides: Sequence[str], options: Sequence[str] = ()) -> None:
        """Keep other processes out of a run folder until the command ends; a new one gets its identity first.

        Args:
            folder: the run folder.
            overrides: those of the command, and of its ``options`` those that say which configuration it has.

        Raises:
            Refused: another process works in it, it holds a symbolic link, it is of an unknown job or
                remembers settings that are not given, it cannot remember those that are given, or it cannot
                be written to.
        """
        try:
            check_overrides(overrides)
            check_links(folder)
            check_named(folder, overrides, options)
            made = absent(folder)
            self.is_new = begin(folder, overrides, options, paths=self._paths)
            self._made = made if self.is_new else []
            self.folder = folder
        except AmcError as error:
            raise Refused(str(error)) from error
        except OSError as error:
            raise Refused(f"run_dir={folder} cannot be made or written to: {error.strerror}") from error
        if not os.access(folder, os.W_OK):
            raise Refused(f"run_dir={folder} is not writable")
        self.lock(folder)
        with suppress(OSError):
            remove_temporary(folder)

    def lock(self, folder: Path) -> None:
        """Keep other processes out of ``folder`` until the command ends.

        Raises:
            Refused: another process works in it.
        """
        try:
            self._locks.enter_context(locked(folder))
        except AmcError as error:
            raise Refused(str(error)) from error

    @contextmanager
    def keep_errors(self) -> Iterator[None]:
        """Hold back the error of the one job."""
        try:
            yield
        except Exception as error:
            self._error = error

    def claim_sweep(self, folder: Path, overrides: Sequence[str]) -> None:
        """Keep other processes out of the folder of a multirun until the command ends.

        Raises:
            Refused: another process works in it.
        """
        made = absent(folder)
        self.lock(folder)
        self._made = made
        self.sweep = Sweep.start(folder, overrides)

    def leave_no_empty_folder(self) -> None:
        """Remove the folders that this refused command has made, if nothing of use is in them."""
        if self._made:
            remove_unused(self._made)

    def resumable(self, text: str) -> str:
        """Return ``text`` with the folder where it says `GOES_ON`: commands make their own by default."""
        if self.sweep is not None:
            place = f"hydra.sweep.dir={shlex.quote(str(self.sweep.folder))}"
            return text.replace(GOES_ON, f"the same command with {place} goes on")
        if self.folder is None or not (self.folder / FILE).exists():
            return text
        return text.replace(GOES_ON, f"the same command with {run_dir(self.folder)} goes on")

    def raise_error(self) -> None:
        """Raise what `keep_errors` has held back, if anything."""
        if self._error is not None:
            raise self._error


class Folders(Callback):
    """Locks the folder of a command before Hydra writes into it."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Claim a run folder.

        Raises:
            Refused: as ``Command.claim``, or the folder has no name.
        """
        with _carried():
            _check_name(config.hydra.run.dir, "run_dir")
            options = config_options(config.hydra)
            Command.current.claim(Path(config.hydra.run.dir), of_job(config.hydra, config), options)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Lock a sweep folder; make all jobs use it, whatever is swept and wherever they run.

        Raises:
            Refused: another process works in it, it has no name, or the jobs were given one run folder.
        """
        with _carried():
            _check_name(config.hydra.sweep.dir, "hydra.sweep.dir")
            given = of_job(config.hydra, config)
            if any(key_of(override) == "run_dir" for override in given):
                raise Refused(
                    "run_dir is given for many jobs; expected hydra.sweep.dir=DIR, a folder for them all"
                )
            folder = Path(os.path.abspath(config.hydra.sweep.dir))
            Command.current.claim_sweep(folder, given)
            quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
            with read_write(config), open_dict(config):
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")


def _check_name(folder: str, key: str) -> None:
    """Refuse a folder without a name: it would be the current directory."""
    if not folder:
        raise Refused(
            f"{key} is empty; expected a folder: likely cause: a variable of the shell that is not set"
        )
