"""Errors for the user: one line that says what was given, what was expected, and the likely cause."""

from collections.abc import Iterable
from difflib import get_close_matches

GOES_ON = "the same command goes on"
"""Ends messages about work that is kept; the command line names the run folder in its place."""


class AmcError(Exception):
    """Bad input, described in one line.

    The command line prints the message without a traceback and exits with a non-zero status. It is not a
    ``ValueError``, so that a handler of faulty values does not swallow a message that is already complete.
    """


class SettingError(AmcError):
    """A setting, or an argument of a public function, that is unknown or impossible."""


class FileError(AmcError):
    """A file that is missing or damaged, has another version, or belongs to another network."""


class NotPrunableError(AmcError):
    """A network that cannot be traced, or that cannot be cut exactly."""


class UnavailableError(AmcError):
    """A package, runtime or device that is not available on this machine."""


class Stopped(KeyboardInterrupt):
    """The user stopped the work; the message says what was kept and how to continue."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error, of any library, means that memory ran out; then the input may be fine."""
    text = str(error).lower()
    # Rust extensions panic with the second text where Python cannot make the object that they ask for.
    told = ("memory" in text and "alloc" in text) or "pyobject pointer is null" in text
    return isinstance(error, MemoryError) or told


_SIZES = ("size", "shape", "must match", "elements", "channels")
"""Words of messages on tensors that do not fit each other."""


def about_sizes(error: BaseException) -> bool:
    """Whether tensors of different sizes have met, and not an index that is no longer there."""
    text = str(error).lower()
    return "out of" not in text and any(word in text for word in _SIZES)


def first_line(error: BaseException) -> str:
    """Return the first line of a message; libraries add tracebacks and hints to theirs."""
    return str(error).strip().split("\n", 1)[0]


def brief(error: BaseException) -> str:
    """Return an error of foreign code in one line: its kind, and at most 200 characters of its text."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def did_you_mean(word: str, known: Iterable[str], most: int = 1, prefix: str = "") -> str:
    """Return ``; did you mean 'x'?`` with the nearest known words, or an empty string if none is near.

    If none is similar, the known words that start with ``word`` are suggested.

    Args:
        word: what was got.
        known: what could be expected.
        most: how many to suggest.
        prefix: shown before each.
    """
    words = list(known)
    near = get_close_matches(word, words, n=most) or [
        each for each in words if word and each.startswith(word)
    ]
    shown = [repr(f"{prefix}{each}") for each in near[:most]]
    return f"; did you mean {' or '.join(shown)}?" if shown else ""
