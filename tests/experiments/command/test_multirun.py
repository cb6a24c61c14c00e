"""Many jobs of one command (``amc -m``), with all launchers there are; Slurm is composed, not run."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import OmegaConf

from amc.third_party import missing
from experiments.command.lock import locked
from experiments.main import prepare_hydra
from tests.experiments.helpers import TINY, Outcome, amc, done, interrupt, read_json, refused, spawn

JOB = (*TINY, "agent=greedy", "stages=[train,search,prune,evaluate]")
SWEPT = ("seed=0,1", "budget.macs_ratio=0.5,0.7")
TOO_TIGHT = "budget.macs_ratio=0.5,0.0001,0.7"
LAUNCHERS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "submitit": ("hydra_plugins.hydra_submitit_launcher", "hydra/launcher=submitit_local"),
}


def launcher(name: str) -> tuple[str, ...]:
    plugin, *overrides = LAUNCHERS[name]
    if (reason := missing("hydra_plugins") or missing(plugin)) is not None:
        pytest.skip(f"pip install amc-search[launchers]: {reason}")
    return tuple(overrides)


def jobs(cwd: Path) -> list[Path]:
    """The folders of the jobs of the one multirun below ``cwd``."""
    (sweep,) = (cwd / "runs/default").iterdir()
    return sorted(path for path in sweep.iterdir() if (path / ".hydra").exists())


def overrides(folder: Path) -> list[str]:
    return [o for o in OmegaConf.load(folder / ".hydra/overrides.yaml") if o not in JOB]


def reproduced(cwd: Path) -> str:
    """Collect all runs below ``cwd`` as the documentation says."""
    environment = {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "experiments.reproduce", "runs", "--out", "out/RESULTS.md"],
        cwd=cwd, env=environment, check=True, timeout=200,
    )  # fmt: skip
    return (cwd / "out/RESULTS.md").read_text()


def test_every_combination_has_a_folder_and_knows_its_own_command(cwd: Path) -> None:
    done("-m", *JOB, *SWEPT, cwd=cwd)
    folders = jobs(cwd)
    assert [folder.name for folder in folders] == ["0_s0", "1_s0", "2_s1", "3_s1"]
    for folder, swept in zip(folders, [(0, 0.5), (0, 0.7), (1, 0.5), (1, 0.7)], strict=True):
        given = [f"seed={swept[0]}", f"budget.macs_ratio={swept[1]}"]
        assert overrides(folder) == given
        strategy = read_json(folder / "strategy.json")
        assert (strategy["seed"], strategy["budget"]["ratio"]) == swept
        assert read_json(folder / "provenance.json")["command"] == " ".join(["amc", *JOB, *given])
    done(f"run_dir={folders[0]}", "stages=[evaluate]", cwd=cwd)
    assert read_json(folders[0] / "provenance.json")["seed"] == 0


@pytest.mark.slow
def test_a_failed_job_leaves_the_others_and_is_taken_up_again(cwd: Path) -> None:
    outcome = amc("-m", *JOB, TOO_TIGHT, cwd=cwd)
    folders = failed_in_the_middle(outcome, cwd)

    again = amc(f"run_dir={folders[1]}", cwd=cwd)  # remembers all that it was asked for
    refused(again, "budget.macs_ratio is 0.0001")
    done(f"run_dir={folders[1]}", "budget.macs_ratio=0.6", cwd=cwd)
    assert read_json(folders[1] / "strategy.json")["budget"]["ratio"] == 0.6
    assert not (folders[1] / "failed.json").exists()


def failed_in_the_middle(outcome: Outcome, cwd: Path) -> list[Path]:
    """Check that the second of three jobs failed and the others are finished; return their folders."""
    assert outcome.status == 2, outcome
    assert "Traceback" not in outcome.err, outcome.err
    folders = jobs(cwd)
    assert [(folder / "stages/evaluate.json").exists() for folder in folders] == [True, False, True]
    head, line = outcome.err.strip().splitlines()[-2:]
    assert head.startswith("amc: 1 of the jobs failed")
    where = folders[1].relative_to(cwd)
    assert line.startswith(f"  {where} (budget.macs_ratio=0.0001): budget.macs_ratio is 0.0001"), line
    return folders


@pytest.mark.slow
def test_a_fault_in_a_job_leaves_the_others(cwd: Path) -> None:
    with (cwd / "mynet.py").open("a") as file:
        file.write("\ndef broken(num_classes):\n    return 1 / 0 if num_classes else None\n")
    outcome = amc("-m", *JOB, "model=mynet.broken,mynet.make", cwd=cwd)
    assert outcome.status == 2
    broken, whole = jobs(cwd)
    assert "ZeroDivisionError" in outcome.err
    assert "ZeroDivisionError" in (broken / "failed.json").read_text()
    assert (whole / "stages/evaluate.json").exists()


@pytest.mark.slow
def test_failures_of_an_earlier_multirun_are_not_listed_again(cwd: Path) -> None:
    folder = "hydra.sweep.dir=runs/default/mine"
    assert amc("-m", *TINY, "stages=[inspect]", "seed=0,-1", folder, cwd=cwd).status == 2
    assert (cwd / "runs/default/mine/1_s-1/failed.json").exists()
    done("-m", *TINY, "stages=[inspect]", "seed=0", folder, cwd=cwd)


@pytest.mark.slow
def test_a_job_in_an_old_folder_is_checked_as_a_single_one_is(cwd: Path) -> None:
    job, folder = ("-m", *TINY, "stages=[inspect]", "hydra.sweep.dir=sweep"), cwd / "sweep/0_s0"
    done(*job, "seed=0", "agent.episodes=7", cwd=cwd)
    before, left = (folder / "overrides.json").read_bytes(), folder / f".x.json.{'a' * 32}.tmp"
    left.touch()
    assert amc(*job, "seed=0", "agent.episodes=0", cwd=cwd).status == 2
    assert (folder / "overrides.json").read_bytes() == before
    assert not left.exists()
    (folder / "exports").symlink_to(cwd)
    assert "holds a symbolic link, exports" in amc(*job, "seed=0", cwd=cwd).err
    (folder / "exports").unlink()
    (folder / "overrides.json").unlink()
    assert "of an unknown job" in amc(*job, "seed=0", cwd=cwd).err
    assert not (folder / "overrides.json").exists()


def test_a_multirun_that_is_stopped_names_the_job_that_goes_on(cwd: Path) -> None:
    interrupt(cwd, 3)
    job = (*TINY, "agent=random", "reward=mynet.score", "stages=[train,search]", "hydra.sweep.dir=a sweep")
    outcome = amc("-m", *job, "seed=0", cwd=cwd)
    folder = cwd / "a sweep/0_s0"
    assert outcome.status == 130
    assert outcome.err.endswith(f"; amc run_dir='{folder}' goes on\n")
    (cwd / "interrupt").unlink()
    done(f"run_dir={folder}", cwd=cwd)
    assert (folder / "stages/search.json").exists()


@pytest.mark.slow
def test_jobs_differ_in_their_folders_whatever_is_swept(cwd: Path) -> None:
    done("-m", *TINY, "stages=[inspect]", "name=a,b", "agent=greedy,uniform", cwd=cwd)
    (sweep,) = cwd.glob("runs/*/*_sweep")
    assert len([path for path in sweep.iterdir() if (path / ".hydra").exists()]) == 4


def test_two_multiruns_do_not_share_a_folder(cwd: Path) -> None:
    with locked(cwd / "runs/mine"):
        outcome = amc("-m", *TINY, "stages=[inspect]", "seed=0,1", "hydra.sweep.dir=runs/mine", cwd=cwd)
    refused(outcome, "another process works in")
    assert [path.name for path in (cwd / "runs/mine").iterdir()] == [".lock"]


def test_one_run_folder_for_many_jobs_is_refused(cwd: Path) -> None:
    refused(amc("-m", *TINY, "run_dir=run", "seed=0,1", cwd=cwd), "run_dir", "hydra.sweep.dir")
    assert not (cwd / "run").exists()


def run_apart(*arguments: str, cwd: Path) -> Outcome:
    """Run the command as a process of its own: launchers leave processes and open files behind."""
    process = spawn(*arguments, cwd=cwd)
    out, err = process.communicate(timeout=280)
    return Outcome(process.returncode, out, err)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHERS)
def test_jobs_in_other_processes(name: str, cwd: Path) -> None:
    outcome = run_apart("-m", *JOB, TOO_TIGHT, *launcher(name), cwd=cwd)
    folders = failed_in_the_middle(outcome, cwd)
    command = read_json(folders[2] / "provenance.json")["command"]
    assert command == " ".join(["amc", *JOB, "budget.macs_ratio=0.7"])
    assert [folder.name for folder in folders] == ["0_s0", "1_s0", "2_s0"]
    text = reproduced(cwd)
    assert "50% of the macs" in text
    assert "70% of the macs" in text


@pytest.mark.slow
def test_seeds_of_a_multirun_are_one_row(cwd: Path) -> None:
    done("-m", *JOB, "seed=0,1", cwd=cwd)
    text = reproduced(cwd)
    assert text.count("\n## mynet.make, ") == 1
    assert "\n| greedy | 0, 1 |" in text


@pytest.mark.slow
def test_a_job_that_the_system_kills_is_reported(cwd: Path) -> None:
    with (cwd / "mynet.py").open("a") as file:
        file.write("\ndef killed(num_classes):\n    import os\n    os.kill(os.getpid(), 9)\n")
    models = "model=mynet.killed,mynet.make"
    outcome = run_apart("-m", *JOB, models, "stages=[train]", *launcher("submitit"), cwd=cwd)
    assert outcome.status == 2
    assert "Traceback" not in outcome.err.split("amc: ")[-1]
    assert "the launcher ended with" in outcome.err
    killed, other = jobs(cwd)
    deadline = time.monotonic() + 120
    while not (other / "stages/train.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert not (killed / "stages/train.json").exists()


def test_slurm_composes() -> None:
    """Not run here: there is no Slurm."""
    launcher("submitit")
    prepare_hydra()
    chosen = [
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.partition=gpu",
        "hydra.launcher.gpus_per_node=1",
    ]
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("config", overrides=chosen, return_hydra_config=True)
    slurm = OmegaConf.to_container(config.hydra.launcher, resolve=False)
    assert slurm["_target_"].endswith("SlurmLauncher")
    assert (slurm["partition"], slurm["gpus_per_node"]) == ("gpu", 1)
    with (
        initialize_config_module("conf", version_base="1.3"),
        pytest.raises(HydraException, match="partitoin"),
    ):
        compose("config", overrides=[chosen[0], "hydra.launcher.partitoin=gpu"], return_hydra_config=True)
