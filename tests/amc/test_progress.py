import re

import amc.progress
from amc.progress import progress


def test_short_work_tells_nothing_off_a_terminal(capsys):
    with progress(3, "training", "batch", initial=1) as bar:
        bar.update(2)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_a_bar_that_is_not_shown_draws_nothing(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress(3, "training", "batch", shown=False) as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""


def test_a_bar_can_stay_on_the_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress(3, "search", "episode", stays=True) as bar:
        bar.update(3)
    assert capsys.readouterr().err.endswith("\n")


def test_the_bar_is_removed_when_it_is_closed(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress(3, "training", "batch", initial=1) as bar:
        assert (bar.n, bar.total) == (1, 3)
        bar.update(2)
    drawn = capsys.readouterr().err
    assert "training" in drawn
    assert drawn.endswith("\r")


def test_long_work_tells_lines_off_a_terminal_and_draws_nothing(monkeypatch, capsys):
    monkeypatch.setattr(amc.progress, "SECONDS", 0.0)
    with progress(3, "search", "episode", initial=1) as bar:
        bar.set_postfix(best="0.5")
        bar.last_print_t -= 5
        bar.update()
    told = capsys.readouterr().err
    assert "\r" not in told
    assert re.search(r"^search: episode 2 of 3, 00:\d\d so far, about 00:\d\d left, best=0.5$", told, re.M)
