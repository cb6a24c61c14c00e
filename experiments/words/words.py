"""The words that may follow ``amc`` in place of settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from amc.errors import SettingError, did_you_mean
from experiments.config.stages import STAGES

Word = Callable[[Sequence[str]], None]
"""Called with the rest of the command line; prints."""

ABOUT: Mapping[str, str] = {
    "plan": "amc plan [KEY=VALUE ...]: what a job would do, and how long it takes",
    "list": "amc list models|agents|runtimes|data|rewards|stages|formats [PATTERN]",
    "help": "amc help [GROUP]: the options of a group, such as agent or budget, and its keys",
    "check": "amc check: what is installed, and which runtimes run here",
    "compare": "amc compare RUN RUN ... --out FILE.html: finished runs on one page",
    "version": "amc version",
}
"""Word -> how it is used."""


def settings_of(arguments: Sequence[str]) -> list[str]:
    """Return the arguments as settings: ``plan`` and ``help`` without a group are written as such.

    The stages that are given to ``plan`` are those that it counts.

    Raises:
        SettingError: the first argument is a word, but none of ours.
    """
    if not arguments or not is_word(arguments[0]):
        return list(arguments)
    word, rest = arguments[0], arguments[1:]
    if word == "plan":
        counted = (f"plan.{each}" if each.startswith("stages=") else each for each in rest)
        return [*counted, "stages=[plan]"]
    if word == "help":
        return ["--help", *rest]
    if word in STAGES:
        raise SettingError(f"{word} is a stage; write stages=[{word}]")
    near = did_you_mean(word, [*ABOUT, *STAGES])
    raise SettingError(f"unknown word {word!r}; expected KEY=VALUE, or one of {', '.join(ABOUT)}{near}")


def is_word(argument: str) -> bool:
    """Whether an argument is neither a setting nor an option, such as ``--help``."""
    return "=" not in argument and not argument.startswith(("-", "+", "~"))


def own_command(arguments: Sequence[str]) -> Word | None:
    """Return the command that runs in place of a job, if the arguments begin with its word."""
    if not arguments:
        return None
    match arguments[0]:
        case "version":
            return _version
        case "list":
            return _list
        case "help" if len(arguments) > 1 and is_word(arguments[1]):
            return _help
        case "check":
            return _check
        case "compare":
            return _compare
        case _:
            return None


def _refuse_further(command: str, arguments: Sequence[str]) -> None:
    """Refuse words that a command would ignore.

    Raises:
        SettingError: there are any.
    """
    if arguments:
        raise SettingError(f"amc {command} takes no more words; got {' '.join(arguments)}")


# Each imports at its call what it needs: a word that needs no torch answers at once.


def _version(arguments: Sequence[str]) -> None:
    _refuse_further("version", arguments)
    from amc import __version__

    print(f"amc-search {__version__}")


def _list(arguments: Sequence[str]) -> None:
    from experiments.words.lists import print_list

    print_list(arguments)


def _help(arguments: Sequence[str]) -> None:
    _refuse_further(f"help {arguments[0]}", arguments[1:])
    from experiments.words.lists import print_group

    print_group(arguments[0])


def _check(arguments: Sequence[str]) -> None:
    _refuse_further("check", arguments)
    from experiments.words.installed import print_check

    print_check()


def _compare(arguments: Sequence[str]) -> None:
    from experiments.words.comparison import compare_command

    compare_command(arguments)
