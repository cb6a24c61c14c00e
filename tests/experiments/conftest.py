"""Folders that several test files start from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.experiments.helpers import TINY, done, workspace


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    """A current directory with the user's module ``mynet``."""
    return workspace(tmp_path / "cwd")


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A current directory with the run folder ``run`` of the smallest job, trained; not to be changed."""
    cwd = workspace(tmp_path_factory.mktemp("trained"))
    done(*TINY, "run_dir=run", "stages=[train]", cwd=cwd)
    return cwd


@pytest.fixture
def trained_run(trained_once: Path, tmp_path: Path) -> Path:
    """A copy of `trained_once` to work in."""
    return shutil.copytree(trained_once, tmp_path / "trained")


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A current directory with the run folder ``run`` of the smallest job, reported; not to be changed."""
    cwd = workspace(tmp_path_factory.mktemp("reported"))
    done(*TINY, "agent=random", "run_dir=run", "stages=[train,search,prune,report]", cwd=cwd)
    return cwd
