"""Signals do not interrupt imports, and are not lost."""

import signal
import subprocess
import sys

import pytest

from experiments.command.signals import held_back

SIGNALLED = """
import signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "experiments.main":
            signal.raise_signal(signal.{})
from experiments.start import main
sys.meta_path.insert(0, Finder())
main()
"""


def interrupted(done):
    with held_back():
        signal.raise_signal(signal.SIGINT)
        done.append("all of the block")


def test_a_signal_in_the_block_is_raised_after_it():
    done = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(done)
    assert done == ["all of the block"]


def test_handlers_are_as_before():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with held_back():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(("name", "word"), [("SIGINT", "stopped"), ("SIGTERM", "terminated")])
def test_a_signal_while_the_command_is_imported_ends_it_in_one_line(name, word):
    ended = subprocess.run([sys.executable, "-c", SIGNALLED.format(name)], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (130, f"amc: {word}\n")
