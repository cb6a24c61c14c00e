"""The ``amc`` command: one Hydra application that runs stages on a run folder."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from amc.errors import GOES_ON, AmcError, SettingError, Stopped, did_you_mean
from experiments.command import model_source, multirun, quick_hydra
from experiments.command.command import Carried, Command, Refused
from experiments.command.foreign import names_code
from experiments.command.lock import locked
from experiments.command.log import copied
from experiments.command.memory.content import FILE
from experiments.command.memory.identity import Identity, remembering
from experiments.command.memory.remembered import (
    check_known,
    check_overrides,
    goes_on,
    remembered_value,
    with_remembered,
)
from experiments.command.messages import (
    INTERNAL_ERROR,
    internal_error,
    message,
    not_of_the_chosen,
    one_line,
)
from experiments.command.overrides import config_options, of_job, options_first, readable, with_new_keys
from experiments.command.signals import held_back
from experiments.command.tidy import check_links, remove_temporary
from experiments.config import schema, stages
from experiments.config.torchrun import torchrun_rank
from experiments.run.values import check_values
from experiments.words import words

_log = logging.getLogger("amc")

FOLDERS = frozenset({"run_dir", "hydra.run.dir", "hydra.sweep.dir"})
"""Keys that name the folder of a command."""


def main() -> None:
    """Run the command line; bad input ends in one line on stderr and a non-zero status."""
    if int(os.environ.get("RANK", 0)) > 0 and _helps():
        return
    command = Command(schema.path_keys())
    handler = signal.signal(signal.SIGTERM, _interrupt)
    try:
        if (own := words.own_command(sys.argv[1:])) is not None:
            own(sys.argv[2:])
            return
        prepare_hydra()
        with command.running():
            rules = schema.rules()
            arguments = readable(words.settings_of(sys.argv[1:]), schema.path_keys() | FOLDERS)
            arguments = with_remembered(arguments, rules)
            sys.argv[1:] = options_first(with_new_keys(arguments, rules.free))
            _app()
        _end_after_failed_jobs(command)
        command.raise_error()
        sys.stdout.flush()
    except Refused as refusal:
        _fail(str(refusal), 2)
    except KeyboardInterrupt as stop:
        _fail(_stopped(stop, command), 130)
    except BrokenPipeError:
        _leave_output()
        _fail(command.resumable(f"the reader of the output has closed it; {GOES_ON}"), 141)
    except Exception as error:
        _end_with(error, command)
    finally:
        signal.signal(signal.SIGTERM, handler)
        _dismiss_helpers()


def _dismiss_helpers() -> None:
    """Let the processes that torchrun has started beside this one end."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from experiments.stages.networks.crew import dismiss

        dismiss()


def _helps() -> bool:
    """Be a helper of the command if torchrun has started this process as one; say whether it has."""
    if torchrun_rank() is None:
        return False
    from experiments.stages.networks.team import assist

    try:
        assist()
    except AmcError as error:
        _fail(str(error), 2)
    return True


@cache
def prepare_hydra() -> None:
    """Register the schema and the names of the networks with Hydra, before it composes a configuration."""
    quick_hydra.quicken()
    schema.register()
    model_source.register()


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def _app(cfg: DictConfig) -> None:
    """Run one job. A job of a multirun may run in another process than `main`."""
    given, folder = of_job(HydraConfig.get(), cfg), Path(HydraConfig.get().runtime.output_dir)
    if not multirun.is_multirun():
        with Command.current.keep_errors():
            _job(cfg, folder, given, new=Command.current.is_new)
        return
    try:
        _one_of_many(cfg, folder, given)
    except BrokenPipeError as error:  # no other job could print anything either
        raise Carried(error) from error
    except Exception as error:  # it must not cost the other jobs
        if (text := message(error, schema.names())) is not None:
            text = text.replace(GOES_ON, goes_on(folder))
            _log.error("%s", text)
        else:
            _log.exception("internal error")
        multirun.record_failure(folder, text or internal_error(error), given)
    except KeyboardInterrupt as stop:
        if isinstance(stop, Stopped) or not (folder / FILE).exists():
            raise
        raise Stopped(f"{stop or 'stopped'}; {goes_on(folder)}") from stop


def _one_of_many(cfg: DictConfig, folder: Path, given: Sequence[str]) -> None:
    """Run a job of a multirun, in a folder that is checked as that of a single job is."""
    check_overrides(given)
    check_links(folder)
    check_known(folder)
    with locked(folder):
        with suppress(OSError):
            remove_temporary(folder)
        _job(cfg, folder, given)


def _job(cfg: DictConfig, folder: Path, given: Sequence[str], *, new: bool = False) -> None:
    """Check the configuration and run the stages; the overrides ``given`` are remembered in ``folder``."""
    for problem in _unknown_keys(cfg):
        raise SettingError(problem)
    many = multirun.is_multirun()
    hydra = {"config.yaml": cfg, "hydra.yaml": HydraConfig.instance().cfg, "overrides.yaml": list(given)}
    texts = {name: OmegaConf.to_yaml(content) for name, content in hydra.items()}
    options = config_options(HydraConfig.get())
    memory = remembering(folder, given, options, paths=schema.path_keys(), keep=many, new=new, hydra=texts)
    with copied(folder), memory as identity:
        config = OmegaConf.to_object(cfg)
        assert isinstance(config, schema.Config)
        if names_code(config.model.name) or names_code(config.reward):
            _see_current_directory()
        check_values(config, given)
        _run(config, folder, given, identity)


def _run(config: schema.Config, folder: Path, given: Sequence[str], identity: Identity) -> None:
    """Check network, data and budget, accept the identity of the folder, and run the stages.

    A line each tells of given settings that nothing in the job reads.
    """
    with held_back():
        # These import torch, which takes seconds: the help and messages about single values come without it.
        from experiments.config.budgets import asked_budgets, told
        from experiments.config.unused import Job, remarks
        from experiments.job import run_job
        from experiments.run.check import check
        from experiments.run.run import open_run, set_up_process

    run = open_run(config, folder)
    set_up_process(config)
    multirun.forget_failure(folder)
    check(run)
    limited = any("latency" in ratios for ratios in asked_budgets(config.budget))
    job = Job(
        config,
        calibration=len(run.problem.drawn.calibration),
        profiled=limited and run.profiled,
        remembered=(lambda key: None) if identity.is_new else partial(remembered_value, folder),
    )
    notes = list(remarks(job, given))
    identity.accept()
    if stages.UNDER_BUDGET & set(run.stages):
        free = "" if run.reward.enforces_budget else f"; reward={run.reward.name} does not enforce it"
        print(f"budget: {told(config.budget, given)}{free}")
    for note in notes:
        print(f"settings: {note}")
    run_job(run, given)


def _unknown_keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yield a message for each key that no dataclass declares: Hydra lets ``+key=value`` add any key."""
    declared = OmegaConf.get_type(node)
    known = {field.name for field in fields(declared)} if is_dataclass(declared) else None
    for key in map(str, node):
        if known is not None and key not in known:
            hint = did_you_mean(key, sorted(known), prefix=prefix)
            unknown = f"unknown key '{prefix}{key}' in the configuration{hint or '; is it a typo?'}"
            yield not_of_the_chosen(f"{prefix}{key}", schema.rules().keys) or unknown
        elif not OmegaConf.is_missing(node, key) and OmegaConf.is_dict(node[key]):
            yield from _unknown_keys(node[key], f"{prefix}{key}.")


def _see_current_directory() -> None:
    """Make a user's own network or reward importable from the current directory.

    A module lying there under the name of an optional package would be imported in its place, so that a job
    without code of the user does not see it.
    """
    if "" not in sys.path:
        sys.path.append("")


def _interrupt(_signal: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt("terminated")


def _stopped(stop: KeyboardInterrupt, command: Command) -> str:
    """Return what the user is told who has stopped the command."""
    text, goes_on = str(stop) or "stopped", command.resumable(GOES_ON)
    return text if isinstance(stop, Stopped) or goes_on == GOES_ON else f"{text}; {goes_on}"


def _end_with(error: Exception, command: Command) -> NoReturn:
    """Print one line about ``error`` and exit; raise it again if the user wants tracebacks."""
    text, status = message(error, schema.names()), 2
    if text is not None:
        command.leave_no_empty_folder()
    if command.wants_traceback:
        raise error
    if text is None and command.sweep is not None:
        text = f"the launcher ended with {type(error).__name__}: {error}"
    elif text is None:
        text, status = internal_error(error), INTERNAL_ERROR
    text = command.resumable(text)
    _end_after_failed_jobs(command, text)
    _fail(text, status)


def _end_after_failed_jobs(command: Command, error: str | None = None) -> None:
    """If jobs of a multirun have failed, print ``error`` or their number, list them, and exit."""
    lines = command.sweep.failures() if command.sweep is not None else []
    if lines:
        head = one_line(error or f"{len(lines)} of the jobs failed")
        listed = "".join(f"\n  {one_line(line)}" for line in lines)
        print(f"amc: {head}; amc run_dir=FOLDER resumes a job{listed}", file=sys.stderr)
        sys.exit(2)


def _leave_output() -> None:
    """Write what is still to come nowhere, so that Python does not complain at its end."""
    logging.raiseExceptions = False
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(text: str, status: int) -> NoReturn:
    print(f"amc: {one_line(text)}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
