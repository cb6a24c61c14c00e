"""Trainings of stages: what is refused before any work, a teacher of the user, and several processes."""

import shutil

import numpy as np
import pytest

from tests.experiments.helpers import SMALL, amc, done, refused

JOB = (*SMALL, "model=resnet20", "agent=uniform", "run_dir=run", "threads=1", "finetune.precision=fp32")

TEACH = """
import os
from pathlib import Path

def teach(images):
    if Path("die").exists() and os.environ.get("RANK") == "1":
        os._exit(9)
    return images.mean((2, 3)) @ images.new_ones(3, 4)
"""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("finetune.until=0.9", "trained on them, which flatters"),
        ("finetune.processes=0", "finetune.processes=0: expected 1 or more"),
        ("finetune.sharded=true", "there is one; write finetune.processes=2"),
        ("finetune.method=half", "method=half: expected full, norms or lora"),
    ],
)
def test_refused_before_any_work(override, message, tmp_path):
    given = ("model.checkpoint=none.safetensors", "stages=[search,prune,finetune]")
    refused(amc(*JOB, *given, override, cwd=tmp_path), message)


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
