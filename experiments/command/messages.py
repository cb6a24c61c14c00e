"""Errors as one line for the terminal."""

from __future__ import annotations

import errno
import re
from collections.abc import Collection, Iterable

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from amc.errors import GOES_ON, AmcError, did_you_mean, first_line, out_of_memory

_NOISE = ("full_key:", "object_type=", "reference_type=", "Set the environment variable")
"""How lines begin that Hydra and OmegaConf add for their own developers."""
_HIDDEN = "base_"
"""How the names of schemas begin, which are no options."""
_UNKNOWN_KEY = re.compile(r"Could not override '([\w.@]+)'")
_FACTORIES = ("data", "model")
"""Groups whose ``kwargs`` are passed to a function of the user."""
FULL_ERROR = "HYDRA_FULL_ERROR"
"""The environment variable with which tracebacks are printed; Hydra's own."""
INTERNAL_ERROR = 70
"""The exit status after a fault of this package: ``EX_SOFTWARE`` of BSD's sysexits.h."""
_LACKS = {
    errno.ENOSPC: "free some space on the disk of the run folder",
    errno.EDQUOT: "free some of your space on the disk of the run folder",
    errno.EROFS: "the disk can only be read",
    errno.EIO: "the disk fails",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENOMEM: "free some memory",
}
"""What the machine may lack -> what to do about it."""


def one_line(text: str) -> str:
    """Return ``text`` with each run of white space as one space."""
    return " ".join(text.split())


def message(error: Exception, keys: Iterable[str] = ()) -> str | None:
    """Return the message of an error that can be expected: bad input, failed files, too little memory.

    Args:
        error: the error.
        keys: the keys of the configuration and its groups; the nearest is suggested for a misspelt one.

    Returns:
        The message, or None for any other error.
    """
    if isinstance(error, HydraException | OmegaConfBaseException):  # some of Hydra's are OSErrors, too
        return _nearest(error, keys) or f"bad configuration: {_without_noise(error)}"
    if isinstance(error, AmcError):
        return str(error)
    if isinstance(error, OSError):
        return _file_error(error)
    if out_of_memory(error):
        return (
            f"memory ran out: {first_line(error) or 'no reason is given'}; expected more memory, or a "
            "smaller data.batch_size, data.image_size or data.calibration"
        )
    return None


def internal_error(error: Exception) -> str:
    """Return the message of an error that nothing expects, which is a fault of this package."""
    what = f"{type(error).__name__}: {first_line(error)}".rstrip(": ")
    where = f"{FULL_ERROR}=1 amc ... prints the traceback, a run folder's amc.log has it, too"
    return f"internal error, {what}; please report it ({where})"


def _nearest(error: Exception, keys: Iterable[str]) -> str | None:
    """Return the message about a misspelt option or key; None if the error is about something else."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        known = [option for option in error.options if not option.startswith(_HIDDEN)]
        return f"unknown {group} {name!r}; expected one of {', '.join(known)}{did_you_mean(name, known)}"
    if (found := _UNKNOWN_KEY.search(str(error))) is not None:
        keys = set(keys)
        near = _near_key(found[1], keys) or "; amc --cfg job lists the keys of a job"
        unknown = f"unknown key {found[1]!r} in the configuration{near}"
        return not_of_the_chosen(found[1], keys) or unknown
    return None


def _near_key(key: str, keys: Collection[str]) -> str:
    """Return the nearest key: of one without a dot those without, if any is near, such as ``agent``."""
    alike = [known for known in keys if ("." in known) == ("." in key)]
    return did_you_mean(key, alike) or did_you_mean(key, keys)


def not_of_the_chosen(key: str, keys: Collection[str]) -> str | None:
    """Return the message about a key that another choice of its group has; None if no choice has it.

    Args:
        key: what the configuration lacks, such as ``data.root``.
        keys: those of all choices.
    """
    if key not in keys:
        return None
    group, _, name = key.partition(".")
    told = f"the chosen {group} has no key {key!r}: amc help {group} lists the keys"
    if group in _FACTORIES and name != "kwargs":
        told += f"; {group}.kwargs.{name}=... is for a function of yours"
    return told


def _file_error(error: OSError) -> str | None:
    """Return the message of a failed file operation; None if it names no file and no lack is known."""
    if error.filename is not None:
        return f"cannot use {error.filename}: {error.strerror}"
    if error.errno in _LACKS:
        return f"{error.strerror}: {_LACKS[error.errno]}; {GOES_ON}"
    return None


def _without_noise(error: Exception) -> str:
    """Join the lines of an error and of its cause, each of them once."""
    texts = [str(error), *([str(error.__cause__)] if error.__cause__ is not None else [])]
    parts = [line.strip() for text in texts for line in text.splitlines()]
    kept = [part for part in parts if part and not part.startswith(_NOISE)]
    where = f"{error.override}: " if isinstance(error, OverrideParseException) else ""
    return where + " ".join(dict.fromkeys(kept))
