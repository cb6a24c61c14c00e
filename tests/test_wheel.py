"""The package as users get it: built, installed into a fresh environment, run beside folders of its names."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.experiments.helpers import FAKE, MYNET

ROOT = Path(__file__).parent.parent
PACKAGES = ("agents", "amc", "conf", "envs", "experiments")


def run(command, cwd):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ended = subprocess.run(
        command,
        cwd=cwd,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The command ``amc`` of a fresh environment; other packages are those of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source], folder)
    (wheel,) = folder.glob("amc_search-*.whl")
    venv.create(folder / "fresh", with_pip=False)
    python = folder / "fresh" / "bin" / "python"
    run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], folder)
    (packages,) = (folder / "fresh" / "lib").glob("python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    return folder / "fresh" / "bin" / "amc"


@pytest.mark.slow
def test_the_wheel_works_beside_folders_of_the_same_names(command, tmp_path):
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(f"raise SystemExit('{package} of this directory')")
    (tmp_path / "mynet.py").write_text(MYNET)
    version = run([command, "version"], tmp_path)
    assert version.startswith("amc-search ")
    assert "Usage: amc" in run([command, "--help"], tmp_path)
    job = ("model=mynet.make", "train.epochs=1", "agent=greedy", "workers=process", "workers.count=1")
    stages = "stages=[train,search,prune,export,report]"
    out = run([command, *FAKE, *job, stages, "run_dir=run"], tmp_path)
    assert "everything is in" in out
    for name in ("strategy.json", "report.html", "exports/predict.py", "exports/model.onnx"):
        assert (tmp_path / "run" / name).exists(), name
