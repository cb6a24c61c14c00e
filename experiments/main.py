"""The ``amc`` command: one Hydra application that runs stages on a run folder."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from amc.errors import AmcError
from experiments.command import model_source, multirun
from experiments.command.lock import locked
from experiments.command.remembered import remembering, with_remembered
from experiments.config import schema

_FULL_ERROR = "HYDRA_FULL_ERROR"
_failures: list[AmcError] = []
_log = logging.getLogger("amc")


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def _app(cfg: DictConfig) -> None:
    given, folder = list(HydraConfig.get().overrides.task), Path(HydraConfig.get().runtime.output_dir)
    if not multirun.is_multirun():
        try:
            _job(cfg, folder, given)
        except AmcError as error:  # kept from Hydra, which would print more than the one line
            _failures.append(error)
        except OSError as error:
            _failures.append(_file_error(error))
        return
    _see_current_directory()  # this may be another process than that of main
    with locked(folder):
        try:
            _job(cfg, folder, given)
        except AmcError as error:
            _log.error("%s", error)
            multirun.record_failure(folder, str(error), given)
        except Exception as error:  # a fault of ours must not cost the other jobs
            _log.exception("unexpected error")
            multirun.record_failure(folder, f"{type(error).__name__}: {error}", given)


def _job(cfg: DictConfig, folder: Path, given: Sequence[str]) -> None:
    from experiments.config.budgets import check_given
    from experiments.job import run_job
    from experiments.run.check import check
    from experiments.run.run import open_run, set_up_process

    for key in _unknown_keys(cfg):
        raise AmcError(f"unknown key {key!r} in the configuration; is it a typo?")
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, schema.Config)
    run = open_run(config, folder)
    set_up_process(config)
    multirun.forget_failure(folder)
    with remembering(folder, given, keep=multirun.is_multirun()):
        check_given(config.budget, given)
        check(run)
        run_job(run, given)


def main() -> None:
    """Run the command line; bad input ends in one line on stderr and a non-zero status."""
    schema.register()
    model_source.register()
    _see_current_directory()
    asked = os.environ.get(_FULL_ERROR)
    os.environ[_FULL_ERROR] = "1"  # Hydra hands its errors on instead of printing them
    handler = signal.signal(signal.SIGTERM, _interrupt)
    try:
        sys.argv[1:] = with_remembered(sys.argv[1:])
        _failures.clear()
        with multirun.command():
            _app()
            _tell_failed_jobs()
        if _failures:
            raise _failures[0]
    except multirun.Refused as refusal:
        _fail(str(refusal), 2)
    except KeyboardInterrupt as stop:
        _fail(str(stop) or "stopped", 130)
    except (AmcError, HydraException, OmegaConfBaseException, OSError) as error:
        if asked:
            raise
        _tell_failed_jobs(_message(error))
    except Exception as error:
        if asked or not multirun.has_many():
            raise
        _tell_failed_jobs(f"the launcher ended with {type(error).__name__}: {error}")
    finally:
        signal.signal(signal.SIGTERM, handler)
        if asked is None:
            del os.environ[_FULL_ERROR]


def _see_current_directory() -> None:
    """A user's own factory or reward may lie there."""
    if "" not in sys.path:
        sys.path.append("")


def _tell_failed_jobs(error: str | None = None) -> None:
    """End a multirun that met an ``error`` or of which jobs have failed, with a line for each of those."""
    lines = multirun.failures()
    if lines:
        head = error or f"{len(lines)} of the jobs failed"
        listed = "".join(f"\n  {_line(line)}" for line in lines)
        print(f"amc: {_line(head)}; amc run_dir=FOLDER takes a job up again{listed}", file=sys.stderr)
        sys.exit(2)
    if error is not None:
        _fail(error, 2)


def _interrupt(_signal: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt("terminated")


def _fail(message: str, status: int) -> NoReturn:
    print(f"amc: {_line(message)}", file=sys.stderr)
    sys.exit(status)


def _line(text: str) -> str:
    return " ".join(text.split())


def _message(error: Exception) -> str:
    """Tell an error in one line; Hydra spreads its own over several lines and causes."""
    if isinstance(error, AmcError):
        return str(error)
    if not isinstance(error, HydraException | OmegaConfBaseException):
        assert isinstance(error, OSError)
        return str(_file_error(error))
    lines = [str(error), *([str(error.__cause__)] if error.__cause__ is not None else [])]
    parts = [line.strip() for text in lines for line in text.splitlines()]
    noise = ("full_key:", "object_type=", "reference_type=", "Set the environment variable")
    kept = [part for part in parts if part and not part.startswith(noise)]
    where = f"{error.override}: " if isinstance(error, OverrideParseException) else ""
    return "bad configuration: " + where + " ".join(dict.fromkeys(kept))


def _file_error(error: OSError) -> AmcError:
    """Turn a failed file operation into one line; any other fault is ours and keeps its traceback."""
    if error.filename is None:
        raise error
    return AmcError(f"cannot use {error.filename}: {error.strerror}")


def _unknown_keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yield keys that no dataclass declares: Hydra lets ``+key=value`` add them silently."""
    declared = OmegaConf.get_type(node)
    known = {field.name for field in fields(declared)} if is_dataclass(declared) else None
    for key in map(str, node):
        if known is not None and key not in known:
            near = get_close_matches(key, sorted(known), n=1)
            yield f"{prefix}{key}" + (f" (near {near[0]})" if near else "")
            continue
        if OmegaConf.is_missing(node, key) or not OmegaConf.is_dict(node[key]):
            continue
        yield from _unknown_keys(node[key], f"{prefix}{key}.")


if __name__ == "__main__":
    main()
