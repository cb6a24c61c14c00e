"""Image files are told apart by their paths from the root, however that is written, and by their places."""

import pytest
import torch

from amc.data.pictures import Pictures


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Two pictures below ``x``, to which ``link`` leads, and one beside it."""
    for name in ("x/train/a/0.png", "x/train/b/1.png", "beside/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "link").symlink_to("x")
    (tmp_path / "x/lists").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(root, *paths):
    return Pictures(root, paths, (), (), paths)


def test_the_root_may_be_written_in_any_way(photos):
    whole = [str(photos / name) for name in ("x/train/a/0.png", "x/train/b/1.png", "beside/2.png")]
    expected = made(photos / "x", *whole)
    assert expected._inside("train") == ["train/a/0.png", "train/b/1.png", "../beside/2.png"]
    labels = torch.tensor([0, 1, 0])
    for root in ("x", "./x/", "link", photos / "link", photos / "x"):
        for paths in (
            whole,
            [f"{root}/train/a/0.png", f"{root}/lists/../train/b/1.png", f"{root}/../beside/2.png"],
        ):
            ours = made(root, *paths)
            assert ours.digest("train", labels) == expected.digest("train", labels)
            assert ours.among("test", expected.keys("train"), None) == 3
    assert made(".", "beside/2.png")._inside("train") == ["beside/2.png"]


def test_a_link_below_the_root_moves_with_it(photos):
    (photos / "y").mkdir()
    (photos / "y/train").symlink_to(photos / "x/train")
    ours = made("y", "y/train/a/0.png")
    assert ours._inside("train") == ["train/a/0.png"]
    assert torch.equal(ours.places("train"), made("x", "x/train/a/0.png").places("train"))


def test_another_root_hides_no_picture(photos):
    trained = made("x", "x/train/a/0.png", "x/train/b/1.png")
    later = made("x/train", "x/train/a/0.png", "link/train/b/1.png", "beside/2.png")
    assert later.among("test", trained.keys("train"), None) == 0
    assert later.among("test", trained.keys("train"), trained.places("train")) == 2
