"""The one error that a user is meant to read."""


class AmcError(ValueError):
    """Bad input, told in one line: what was got, what was expected, the likely cause.

    The command line prints the message without a traceback and exits with a non-zero status.
    """


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of any library means that memory could not be had, and says nothing of the input."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or ("memory" in text and "alloc" in text)


class Stopped(KeyboardInterrupt):
    """The user stopped the work; the message says what was kept and how to go on."""
