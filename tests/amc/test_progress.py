from amc.progress import progress


def test_nothing_is_drawn_off_a_terminal(capsys):
    with progress(3, "training", "batch", initial=1) as bar:
        bar.update(2)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_the_bar_goes_as_it_is_closed(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress(3, "training", "batch", initial=1) as bar:
        assert (bar.n, bar.total) == (1, 3)
        bar.update(2)
    drawn = capsys.readouterr().err
    assert "training" in drawn
    assert drawn.endswith("\r")
