"""The ``amc`` command: one Hydra application that runs stages on a run folder."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from amc.errors import AmcError
from experiments import model_source, schema

_FULL_ERROR = "HYDRA_FULL_ERROR"
_failures: list[AmcError] = []


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def _app(cfg: DictConfig) -> None:
    from experiments.run import Run
    from experiments.stages import run_stages

    config = OmegaConf.to_object(cfg)
    assert isinstance(config, schema.Config)
    try:
        run_stages(Run(config, Path(HydraConfig.get().runtime.output_dir)))
    except AmcError as error:  # kept from Hydra, which would print more than the one line; other jobs go on
        _failures.append(error)
    except OSError as error:
        _failures.append(_file_error(error))


def main() -> None:
    """Run the command line; bad input ends in one line on stderr and a non-zero status."""
    schema.register()
    model_source.register()
    debug = bool(os.environ.get(_FULL_ERROR))
    os.environ[_FULL_ERROR] = "1"  # Hydra hands its errors on instead of printing them
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        sys.argv[1:] = with_stored_overrides(sys.argv[1:])
        _failures.clear()
        _app()
        if _failures:
            raise _failures[0]
    except KeyboardInterrupt as stop:
        _fail(str(stop) or "stopped", 130)
    except AmcError as error:
        if debug:
            raise
        _fail(str(error), 2)
    except (HydraException, OmegaConfBaseException) as error:
        if debug:
            raise
        _fail(_hydra_message(error), 2)
    except OSError as error:  # Hydra makes the run folder before any stage is asked
        if debug:
            raise
        _fail(str(_file_error(error)), 2)


def _file_error(error: OSError) -> AmcError:
    """Turn a failed file operation into one line; any other fault is ours and keeps its traceback."""
    if error.filename is None:
        raise error
    return AmcError(f"cannot use {error.filename}: {error.strerror}")


def _interrupt(_signal: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt("terminated")


def _fail(message: str, status: int) -> NoReturn:
    print(f"amc: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


def _hydra_message(error: BaseException) -> str:
    """Tell a composition error, which Hydra spreads over several lines and causes, in one line."""
    lines = [str(error), *([str(error.__cause__)] if error.__cause__ is not None else [])]
    parts = [line.strip() for text in lines for line in text.splitlines()]
    noise = ("full_key:", "object_type=", "reference_type=", "Set the environment variable")
    kept = [part for part in parts if part and not part.startswith(noise)]
    return "bad configuration: " + " ".join(dict.fromkeys(kept))


def with_stored_overrides(arguments: list[str]) -> list[str]:
    """Put the overrides of an old run before the new ones when ``run_dir`` names an old run.

    So ``amc run_dir=RUN stages=[export]`` speaks of the run's own model and data, and ``amc run_dir=RUN``
    goes on where the run stopped. An override given again wins over the stored one.
    """
    given = {_key(argument) for argument in arguments if "=" in argument}
    folder = next((a.split("=", 1)[1] for a in arguments if _key(a) == "run_dir" and "=" in a), None)
    stored = Path(folder) / ".hydra" / "overrides.yaml" if folder else None
    if stored is None or not stored.is_file():
        return arguments
    old = [str(item) for item in OmegaConf.to_object(OmegaConf.load(stored)) or []]
    return [item for item in old if _key(item) not in given] + arguments


def _key(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~")


if __name__ == "__main__":
    main()
