"""Signals do not interrupt imports, and are not lost."""

import signal

import pytest

from experiments.command.signals import held_back


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
