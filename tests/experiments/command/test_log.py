import io
import sys

import pytest

from amc.errors import AmcError
from experiments.command.log import FILE, copied


def test_lines_of_both_streams_are_printed_and_logged_but_no_bars(tmp_path, capsys):
    with copied(tmp_path / "run"):
        print("one", "line")
        print("\rsearch: 10%", end="", file=sys.stderr)
        print("\nwarning", file=sys.stderr)
        print("no end", end="")
    captured = capsys.readouterr()
    assert captured.out == "one line\nno end"
    assert "warning" in captured.err
    lines = (tmp_path / "run" / FILE).read_text().splitlines()
    assert [line.split("] ")[1] for line in lines] == ["one line", "warning"]


def test_a_refusal_is_noted_and_raised(tmp_path):
    with pytest.raises(AmcError), copied(tmp_path):
        raise AmcError("seed is -1")
    assert (tmp_path / FILE).read_text().endswith("amc: seed is -1\n")


def test_the_copy_is_the_stream_in_all_else(tmp_path, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", stream)
    with copied(tmp_path):
        assert sys.stdout.isatty()
    assert sys.stdout is stream
