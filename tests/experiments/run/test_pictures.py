"""Images that the dense network was trained on are not judged on in a later call, or that is told."""

import json

import pytest
from PIL import Image

from experiments.run.values import validates_honestly
from tests.experiments.helpers import TINY, amc, composed, done, refused, workspace

JOB = (
    *("data=imagefolder", "data.root=photos", "data.image_size=8", "data.batch_size=4", "data.workers=0"),
    *("data.search_val=6", "data.calibration=8", "model=mynet.make", "train.epochs=1", "finetune.epochs=0"),
    *("run_dir=run", "agent=greedy"),
)
SPLIT = "data.split=0.25"
DIGITS = (
    *("data=digits", "data.image_size=8", "data.calibration=16", "model=mynet.make", "train.epochs=1"),
    *("finetune.epochs=1", "run_dir=run", "agent=greedy"),
)


def save(path, shade):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9), (shade, 90, 200)).save(path)


@pytest.fixture
def cwd(tmp_path):
    """A folder with 48 pictures of two classes."""
    for place in range(48):
        save(tmp_path / "photos" / ("cat" if place % 2 else "dog") / f"{place:02}.png", 5 * place)
    return workspace(tmp_path)


@pytest.mark.slow
def test_a_picture_more_moves_the_parts_and_is_told(cwd):
    done(*JOB, SPLIT, "stages=[train]", cwd=cwd)
    first = done(*JOB, SPLIT, "stages=[search]", cwd=cwd)
    assert "trained on" not in first.out
    done(*JOB, SPLIT, "stages=[prune,evaluate]", cwd=cwd)
    save(cwd / "photos/cat/00.png", 255)
    told = done(*JOB, SPLIT, "stages=[search]", cwd=cwd)
    assert "test images were trained on by the network of" in told.out
    outcome = amc(*JOB, SPLIT, "stages=[prune,evaluate]", cwd=cwd)
    refused(outcome, "of the 12 test images were trained on", "train again")
    done(*JOB, SPLIT, "stages=[train,search,prune,evaluate]", cwd=cwd)
    (cwd / "photos/cat/00.png").unlink()
    outcome = amc(*JOB, "data.split=0.5", "stages=[evaluate]", cwd=cwd)
    refused(outcome, "of the 24 test images were trained on")


@pytest.mark.slow
def test_more_search_images_than_were_held_out_are_told_and_decide_nothing(tmp_path):
    cwd = workspace(tmp_path)
    done(*DIGITS, "data.search_val=100", "stages=[train,search,prune]", cwd=cwd)
    assert "trained on" not in done(*DIGITS, "data.search_val=60", "stages=[search,prune]", cwd=cwd).out
    told = amc(*DIGITS, "data.search_val=300", "finetune.best=true", "stages=[prune,finetune]", cwd=cwd)
    assert "data: 200 of the 300 search_val images were trained on by the network of" in told.out
    assert "finetune: the weights of the last epoch are kept, not the best" in told.out + told.err
    outcome = amc(*DIGITS, "data.search_val=300", "finetune.until=0.9", "stages=[finetune]", cwd=cwd)
    refused(outcome, "finetune.until=0.9 is judged on search_val images, and 200 of the 300", "train again")
    again = done(*DIGITS, "data.search_val=300", "stages=[train,search]", cwd=cwd)
    assert "trained on" not in again.out


@pytest.mark.slow
def test_more_images_of_a_set_whose_parts_are_apart_are_told_nothing_about(tmp_path):
    cwd = workspace(tmp_path)
    done(*TINY, "run_dir=run", "stages=[train]", cwd=cwd)
    more = done(*TINY, "run_dir=run", "data.search_val=64", "agent=greedy", "stages=[search]", cwd=cwd)
    assert "trained on" not in more.out


@pytest.mark.slow
def test_a_moved_folder_and_another_seed_have_the_same_parts(cwd):
    done(*JOB, SPLIT, "stages=[train,search,prune]", cwd=cwd)
    (cwd / "photos").rename(cwd / "moved")
    moved = done(*JOB, SPLIT, "data.root=./moved", "seed=1", "stages=[evaluate]", cwd=cwd)
    assert "trained on" not in moved.out


def test_the_report_says_that_search_images_are_test_images(cwd):
    for name in ("train", "val"):
        for place in range(16):
            save(cwd / "parted" / name / ("cat" if place % 2 else "dog") / f"{place:02}.png", 9 * place)
    job = (*JOB, "data.root=parted", "data.search_val_dir=val", "stages=[train,search,prune,report]")
    outcome = done(*job, cwd=cwd)
    assert "6 of the search images are test images" in outcome.out
    assert "6 of the search images are test images" in (cwd / "run/report.html").read_text()
    assert json.loads((cwd / "run/report.json").read_text())["search_images_in_test"] == 6


@pytest.mark.parametrize(
    ("words", "honest"),
    [
        (["data.search_val_dir=other"], True),
        (["data.search_val_dir=val"], True),
        (["data.search_val_dir=train"], False),
        (["data.search_val_dir=./train/"], False),
        (["data.search_val_dir=train", "model.checkpoint=net.pth"], False),
        (["data.search_val_dir=other", "model.checkpoint=net.pth"], True),
        (["data.search_val_dir=.", "data.split=0.2"], False),
        (["data.search_val_dir=all.csv", "data.train=all.csv", "data.split=0.2"], False),
        (["model.checkpoint=net.pth"], False),
        ([], True),
    ],
)
def test_honest_search_images_are_not_those_of_training(words, honest):
    config = composed("data=imagefolder", "data.root=photos", *words)
    assert validates_honestly(config) == honest
