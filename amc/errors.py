"""Errors that a user is meant to read: one line with what was got, what was expected and the likely cause."""

from collections.abc import Iterable
from difflib import get_close_matches


class AmcError(Exception):
    """Bad input, told in one line.

    The command line prints the message without a traceback and exits with a non-zero status. It is not a
    ``ValueError``, so that a handler of faulty values does not swallow a message that is already complete.
    """


class SettingError(AmcError):
    """A setting, or an argument of a public function, that is unknown or impossible."""


class FileError(AmcError):
    """A file that is missing, damaged, of another version, or about another network."""


class NotPrunableError(AmcError):
    """A network that cannot be traced, or that cannot be cut exactly."""


class UnavailableError(AmcError):
    """A package, runtime or device that is not available on this machine."""


class Stopped(KeyboardInterrupt):
    """The user stopped the work; the message says what was kept and how to go on."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of any library means that memory ran out, which says nothing about the input."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or ("memory" in text and "alloc" in text)


def first_line(error: BaseException) -> str:
    """Return the first line of a message; libraries add tracebacks and hints to theirs."""
    return str(error).strip().split("\n", 1)[0]


def did_you_mean(word: str, known: Iterable[str], most: int = 1) -> str:
    """Return ``; did you mean 'x'?`` with the nearest known words, or an empty string if none is near.

    A word of which ``word`` is the beginning is near, however much longer it is.
    """
    words = list(known)
    near = get_close_matches(word, words, n=most) or [
        each for each in words if word and each.startswith(word)
    ]
    return f"; did you mean {' or '.join(map(repr, near[:most]))}?" if near else ""
