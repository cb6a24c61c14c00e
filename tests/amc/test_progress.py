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
    with progress(4, "search", "episode", initial=1) as bar:
        bar.set_postfix(best="0.5")
        for _ in range(2):
            bar.last_print_t -= 5
            bar.update()
    told = capsys.readouterr().err
    assert "\r" not in told
    assert re.search(r"^search: episode 2 of 4, 00:\d\d so far, best=0.5$", told, re.M)
    assert re.search(r"^search: episode 3 of 4, 00:\d\d so far, about 00:\d\d left, best=0.5$", told, re.M)


def test_the_time_left_follows_the_last_steps_where_the_first_were_looked_up(monkeypatch, capsys):
    monkeypatch.setattr(amc.progress, "SECONDS", 30.0)
    now = [100.0]
    for clock in ("time.monotonic", "tqdm.std.time"):
        monkeypatch.setattr(clock, lambda: now[0])
    with progress(1000, "search", "episode") as bar:
        for seconds in [0.002] * 900 + [30.0] * 6:
            now[0] += seconds
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"search: episode {n} of 1000" for n in range(901, 907)]
    minutes, _ = re.search(r"about (\d+):(\d\d) left", lines[-1]).groups()
    assert 40 <= int(minutes) <= 47  # 94 steps of 30 s


def test_a_slow_first_step_does_not_count_for_the_time_left(monkeypatch, capsys):
    monkeypatch.setattr(amc.progress, "SECONDS", 30.0)
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with progress(1000, "training", "batch") as bar:
        for seconds in (200, 0.5, 0.5):
            now[0] += seconds
            bar.update()
            bar.last_print_t -= 5
        now[0] += 31
        bar.refresh()
    assert "batch 3 of 1000" in (told := capsys.readouterr().err)
    assert told.splitlines()[-1].endswith("about 4:25:52 left")  # 32 s for two steps
