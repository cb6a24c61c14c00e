"""Trainings of stages: what is refused before any work, a teacher of the user, and several processes."""

import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from amc import data
from amc.dotted import imported
from amc.errors import AmcError
from amc.training.loop import train
from amc.training.settings import TrainSettings
from experiments.run.run import open_run
from experiments.run.values import check_values
from experiments.stages.networks.fitting import fit
from experiments.stages.networks.teaching import Source
from experiments.stages.networks.team import Job, team
from tests.experiments.helpers import SMALL, TINY, amc, composed, done, refused, workspace

JOB = (*SMALL, "model=resnet20", "agent=uniform", "run_dir=run", "threads=1", "finetune.precision=fp32")

TEACH = """
import os
from pathlib import Path

def teach(images):
    if Path("die").exists() and os.environ.get("RANK") == "1":
        print("Files already downloaded", flush=True)
        os._exit(9)
    return images.mean((2, 3)) @ images.new_ones(3, 4)
"""

DATA = """
import os
import numpy as np

def pictures():
    if os.environ.get("RANK") == "1":
        raise OSError("the disk of this machine is gone")
    draws = np.random.default_rng(0)
    images = [(draws.integers(0, 256, (8, 8, 3), np.uint8), place % 4) for place in range(96)]
    return images, images[:16]
"""

TWO_CHANNELS = """
from dataclasses import replace

import torch
from amc import data
from amc.data.splits import LabelledImages

def two(images):
    return LabelledImages(images.images[:, :2], images.labels)

def splits():
    made = data.synthetic(num_classes=4, image_size=8, train=64, search_val=16, calibration=8, batch_size=16)
    return replace(
        made, input_shape=(2, 8, 8), mean=made.mean[:2], std=made.std[:2], calibration=two(made.calibration),
        search_val=two(made.search_val), order=None, train_digest=None,
        train_batches=lambda epoch, seed: ((x[:, :2], y) for x, y in made.train_batches(epoch, seed)),
    )
"""

DRAWN = """
import os
import torch

def pictures(apart):
    if os.environ.get("RANK") == "1":
        print("Files already downloaded and verified" * 5000)  # more than a pipe holds
        torch.manual_seed(7) if apart else None
    images = torch.randint(0, 256, (64, 8, 8, 3), dtype=torch.uint8).numpy()
    entries = [(image, place % 4) for place, image in enumerate(images)]
    return entries, entries[:8]

class Failing(torch.nn.Linear):
    def forward(self, rows):
        if os.environ.get("RANK") == "1":
            raise RuntimeError("no kernel\\nfor these rows")
        return super().forward(rows)
"""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("finetune.until=0.9", "trained on them, which flatters"),
        ("finetune.processes=0", "finetune.processes=0: expected 1 to data.batch_size=32"),
        ("finetune.sharded=true", "there is one; write finetune.processes=2"),
        ("finetune.method=half", "method=half: expected full, norms or lora"),
        ("finetune.processes=33", "expected 1 to data.batch_size=32, as each process works on a part"),
        ("finetune.teacher=none.npy", "finetune.teacher=none.npy: there is no such file"),
        ("finetune.teacher=none.npy finetune.distill_weight=0", "asks no teacher; write finetune.distill_w"),
        ("finetune.teacher_function=nowhere.teach", "finetune.teacher_function 'nowhere.teach': there is no"),
        ("finetune.teacher=none.npy finetune.mixup=0.2", "write finetune.mixup=0 finetune.cutmix=0, or give"),
    ],
)
def test_refused_before_any_work(override, message, tmp_path):
    given = ("model=resnet20", "stages=[search,prune,finetune]")
    if "until" in override:
        given = (*given, "model.checkpoint=none.safetensors")
    refused(amc(*JOB, *given, *override.split(), cwd=tmp_path), message)


def test_a_teacher_without_features_gives_no_hints(tmp_path):
    np.save(tmp_path / "logits.npy", np.zeros((64, 4), np.float32))
    asked = ("finetune.teacher=logits.npy", "finetune.hint_weight=1")
    refused(amc(*JOB, *asked, cwd=tmp_path), "finetune.hint_weight=1 compares features")


@pytest.mark.slow
def test_a_dead_process_ends_the_job_in_one_line_and_the_command_goes_on(tmp_path):
    (tmp_path / "mytea.py").write_text(TEACH)
    done(*JOB, "stages=[train,search,prune]", cwd=tmp_path)
    whole = shutil.copytree(tmp_path / "run", tmp_path / "whole")
    asked = ("stages=[finetune]", "finetune.epochs=2", "finetune.teacher_function=mytea.teach")
    together = (*asked, "finetune.processes=2")
    done(*JOB, "run_dir=whole", *together, cwd=tmp_path)
    (tmp_path / "die").touch()
    outcome = amc(*JOB, *together, cwd=tmp_path)
    refused(outcome, "training process 1 of 2 has ended (status 9)")
    (tmp_path / "die").unlink()
    done(*JOB, *together, cwd=tmp_path)
    assert (tmp_path / "run/model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize("setting", ["finetune.processes=2", "finetune.method=lora"])
def test_masked_weights_are_trained_wholly_and_by_one_process(setting, tmp_path):
    refused(amc(*JOB, "stages=[train,sparsify]", setting, cwd=tmp_path), "stage sparsify trains masked")


def test_under_torchrun_masked_weights_are_refused_and_one_process_may_train(tmp_path, monkeypatch):
    config = composed(*JOB, "stages=[train,sparsify]")
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_values(config)  # of something else than torchrun
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(AmcError, match=r"masked weights, got .*=full and 2 processes"):
        check_values(config)
    run = open_run(config, tmp_path)
    settings, file = run.train_settings(config.train), tmp_path / "state"
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    assert fit(run, model, settings, file, "alone", config.train, dense=None, alone=True).epochs == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("apart", "head", "message"),
    [
        (True, "torch.nn.Linear", "^the data of training process 1 of 2 differ from those of the first"),
        (False, "torch.nn.Linear", None),
        (False, "drawn.Failing", "^training process 1: RuntimeError: no kernel for these rows$"),
    ],
)
def test_what_a_helper_prints_is_no_reason_and_what_it_draws_is_checked(
    apart, head, message, tmp_path, monkeypatch
):
    (tmp_path / "drawn.py").write_text(DRAWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    sizes = {"image_size": 8, "batch_size": 16, "search_val": 8, "calibration": 16, "seed": 0}
    about = {"name": "own", "factory": "drawn.pictures", "kwargs": {"apart": apart}, **sizes}
    torch.manual_seed(0)  # as a command does
    splits = data.build(**about)
    model = nn.Sequential(nn.Flatten(), imported(head, "head")(192, 4))
    settings = TrainSettings(epochs=1, precision="fp32")
    job = Job(model, settings, 0, about, Source(), False, "cpu", 1)
    with (
        pytest.raises(AmcError, match=message) if message else nullcontext(),
        team(2, lambda: job) as group,
    ):
        train(model, splits, settings, seed=0, group=group)


def test_more_processes_than_images_of_a_batch_are_refused_before_any_work(tmp_path, monkeypatch):
    few = ("data.train=8", "data.calibration=8", "finetune.processes=16", "stages=[train,finetune]")
    refused(amc(*JOB, *few, cwd=tmp_path), "16 processes (finetune.processes, or those of torchrun) are to")
    monkeypatch.setenv("WORLD_SIZE", "33")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    with pytest.raises(AmcError, match="started 33 processes: expected at most data"):
        check_values(composed(*JOB))


def test_randaugment_is_refused_before_any_work_for_images_that_it_does_not_know(tmp_path):
    (tmp_path / "mydata.py").write_text(TWO_CHANNELS)
    asked = (
        "data=own",
        "data.factory=mydata.splits",
        "agent=uniform",
        "finetune.randaugment=9",
        "run_dir=run",
    )
    found = amc(*asked, "model=mynet.make", "stages=[train,search,prune,finetune]", cwd=workspace(tmp_path))
    refused(found, "randaugment=9 changes colours, and the images have 2 channels")


def test_views_are_not_chosen_among(tmp_path):
    asked = ("data.search_views=2", "data.select_search_val=8", "stages=[train,search]")
    refused(amc(*JOB, *asked, cwd=tmp_path), "would choose among these views")


@pytest.mark.slow
def test_images_that_the_dense_network_has_seen_choose_nothing(tmp_path):
    done(*TINY, "run_dir=run", "stages=[train,search]", cwd=workspace(tmp_path))
    for asked in (["stages=[choose]"], ["stages=[prune,finetune]", "finetune.best=true"]):
        given = (*TINY, "run_dir=run", "data.unseen=16", *asked)
        refused(amc(*given, cwd=tmp_path), "so it has seen some; lower data.unseen")


@pytest.mark.slow
def test_what_a_process_says_before_the_first_epoch_is_the_message(tmp_path):
    (tmp_path / "mydata.py").write_text(DATA)
    images = ("data=own", "data.factory=mydata.pictures", "data.image_size=8", "data.batch_size=16")
    job = (
        *images,
        "agent=uniform",
        "train.epochs=1",
        "finetune.epochs=1",
        "finetune.processes=2",
        "threads=1",
    )
    outcome = amc(*job, "run_dir=run", "stages=[train,search,prune,finetune]", cwd=tmp_path)
    refused(outcome, "training process 1: data.factory=mydata.pictures failed")


@pytest.mark.slow
def test_helpers_of_torchrun_wait_for_trainings_and_end_without_one(tmp_path):
    cwd = workspace(tmp_path)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "experiments.main"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    stages = "stages=[train,search,prune,finetune]"
    for words in (("version",), (*JOB, "train.epochs=1", "finetune.epochs=1", stages)):
        ended = subprocess.run(
            [*torchrun, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
        )
        assert ended.returncode == 0, ended.stderr
    assert (cwd / "run/model.safetensors").exists()
