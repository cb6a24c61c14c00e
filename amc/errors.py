"""The one error that a user is meant to read."""


class AmcError(ValueError):
    """Bad input, told in one line: what was got, what was expected, the likely cause.

    The command line prints the message without a traceback and exits with a non-zero status.
    """


class Stopped(KeyboardInterrupt):
    """The user stopped the work; the message says what was kept and how to go on."""
