"""Errors as one line for the terminal."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from amc.errors import AmcError, did_you_mean

_NOISE = ("full_key:", "object_type=", "reference_type=", "Set the environment variable")
"""How lines begin that Hydra and OmegaConf add for their own developers."""
_HIDDEN = "base_"
"""How the names of schemas begin, which are no options."""
_UNKNOWN_KEY = re.compile(r"Could not override '([\w.@]+)'")
_FACTORIES = ("data", "model")
"""Groups whose ``kwargs`` are passed to a function of the user."""
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


def message(error: Exception, keys: Iterable[str] = ()) -> str:
    """Return the message of an expected error: an `AmcError`, an `OSError`, or one of Hydra's or OmegaConf's.

    Args:
        error: the error.
        keys: the keys of the configuration; the nearest is suggested for a misspelt one.

    Raises:
        OSError: it names no file; see `file_error`.
    """
    if isinstance(error, HydraException | OmegaConfBaseException):  # some of Hydra's are OSErrors, too
        return _nearest(error, keys) or f"bad configuration: {_without_noise(error)}"
    if isinstance(error, OSError):
        return str(file_error(error))
    return str(error)


def _nearest(error: Exception, keys: Iterable[str]) -> str | None:
    """Return the message about a misspelt option or key; None if the error is about something else."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        known = [option for option in error.options if not option.startswith(_HIDDEN)]
        return f"unknown {group} {name!r}; expected one of {', '.join(known)}{did_you_mean(name, known)}"
    if (found := _UNKNOWN_KEY.search(str(error))) is not None:
        if ".kwargs." in found[1]:
            return f"{found[1]} is a new argument: write +{found[1]}=..., with a plus"
        keys, group = set(keys), found[1].partition(".")[0]
        if found[1] in keys:
            name = found[1].removeprefix(f"{group}.")
            own = f"; +{group}.kwargs.{name}=... is for a function of yours" if group in _FACTORIES else ""
            return f"the chosen {group} has no key {found[1]!r}: amc help {group} lists the keys{own}"
        near = did_you_mean(found[1], keys) or "; amc --cfg job lists the keys of a job"
        return f"unknown key {found[1]!r} in the configuration{near}"
    return None


def file_error(error: OSError) -> AmcError:
    """Return the message of a failed file operation.

    Raises:
        OSError: it names no file, and is no lack of this machine. It is a fault of this package and keeps
            its traceback.
    """
    if error.filename is None and error.errno in _LACKS:
        return AmcError(f"{error.strerror}: {_LACKS[error.errno]}; the same command goes on")
    if error.filename is None:
        raise error
    return AmcError(f"cannot use {error.filename}: {error.strerror}")


def _without_noise(error: Exception) -> str:
    """Join the lines of an error and of its cause, each of them once."""
    texts = [str(error), *([str(error.__cause__)] if error.__cause__ is not None else [])]
    parts = [line.strip() for text in texts for line in text.splitlines()]
    kept = [part for part in parts if part and not part.startswith(_NOISE)]
    where = f"{error.override}: " if isinstance(error, OverrideParseException) else ""
    return where + " ".join(dict.fromkeys(kept))
