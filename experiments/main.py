"""The ``amc`` command: one Hydra application that runs stages on a run folder."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
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
from experiments import model_source, schema
from experiments.remembered import remembering, with_remembered

_FULL_ERROR = "HYDRA_FULL_ERROR"
_failures: list[AmcError] = []


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def _app(cfg: DictConfig) -> None:
    from experiments.budgets import check_given
    from experiments.job import run_job
    from experiments.run import Run

    try:
        for key in _unknown_keys(cfg):
            raise AmcError(f"unknown key {key!r} in the configuration; is it a typo?")
        config = OmegaConf.to_object(cfg)
        assert isinstance(config, schema.Config)
        run = Run(config, Path(HydraConfig.get().runtime.output_dir))
        given = list(HydraConfig.get().overrides.task)
        check_given(config.budget, given)
        run.check()
        with remembering(run.folder, given):
            run_job(run, given)
    except AmcError as error:  # kept from Hydra, which would print more than the one line; other jobs go on
        _failures.append(error)
    except OSError as error:
        _failures.append(_file_error(error))


def main() -> None:
    """Run the command line; bad input ends in one line on stderr and a non-zero status."""
    schema.register()
    model_source.register()
    if "" not in sys.path:  # a user's own factory or reward may lie in the current directory
        sys.path.append("")
    asked = os.environ.get(_FULL_ERROR)
    os.environ[_FULL_ERROR] = "1"  # Hydra hands its errors on instead of printing them
    handler = signal.signal(signal.SIGTERM, _interrupt)
    try:
        sys.argv[1:] = with_remembered(sys.argv[1:])
        _failures.clear()
        _app()
        if _failures:
            raise _failures[0]
    except KeyboardInterrupt as stop:
        _fail(str(stop) or "stopped", 130)
    except (AmcError, HydraException, OmegaConfBaseException, OSError) as error:
        if asked:
            raise
        _fail(_message(error), 2)
    finally:
        signal.signal(signal.SIGTERM, handler)
        if asked is None:
            del os.environ[_FULL_ERROR]


def _interrupt(_signal: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt("terminated")


def _fail(message: str, status: int) -> NoReturn:
    print(f"amc: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


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
