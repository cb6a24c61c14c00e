"""Errors as one line for the terminal."""

from __future__ import annotations

import errno

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from amc.errors import AmcError

_NOISE = ("full_key:", "object_type=", "reference_type=", "Set the environment variable")
"""How lines begin that Hydra and OmegaConf add for their own developers."""
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


def message(error: Exception) -> str:
    """Return the message of an expected error: an `AmcError`, an `OSError`, or one of Hydra's or OmegaConf's.

    Raises:
        OSError: it names no file; see `file_error`.
    """
    if isinstance(error, HydraException | OmegaConfBaseException):  # some of Hydra's are OSErrors, too
        return f"bad configuration: {_without_noise(error)}"
    if isinstance(error, OSError):
        return str(file_error(error))
    return str(error)


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
