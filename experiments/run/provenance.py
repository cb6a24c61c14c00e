"""Where a result comes from: commit, versions, device, data, command."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from experiments.command.multirun import is_multirun
from experiments.config.stages import STAGES
from experiments.run.folder import PROVENANCE

PACKAGES = (
    "amc-search", "torch", "torchvision", "torch-pruning", "gymnasium", "stable-baselines3", "numpy",
    "hydra-core", "onnx", "onnxruntime",
)  # fmt: skip


def provenance(*, seed: int, data: Mapping[str, str], device: str) -> dict[str, Any]:
    """Return the facts that are needed to make a run's figures again.

    Args:
        data: name and fingerprint of the data set.
        device: kind of the device that trains and searches.
    """
    import torch

    from amc.latency.portable.machine import cpu_model

    return {
        "command": command(),
        "commit": commit(),
        "seed": seed,
        "data": dict(data),
        "device": {"kind": device, "cpu": cpu_model(), "threads": torch.get_num_threads()},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def stage_commits(folder: Path, stage: str, commit: str | None) -> dict[str, str | None]:
    """Return the commit at which each stage of a run folder was last run, ``stage`` now at ``commit``.

    Stages of a folder whose provenance does not tell them apart were run at its one commit.
    """
    try:
        before = json.loads((folder / PROVENANCE).read_text())
        told = before.get("stage_commits") or {}
        found = {name: told.get(name, before["commit"]) for name in recorded_stages(folder)}
    except (OSError, ValueError, KeyError, AttributeError):
        found = {}
    return {**found, stage: commit}


def recorded_stages(folder: Path) -> list[str]:
    """Return the stages that a run has a record of, in the order in which they make sense."""
    return [name for name in STAGES if (folder / "stages" / f"{name}.json").exists()]


def command() -> str:
    """Return the command line that was run, without the folder it was run in; of many jobs this one's."""
    given = HydraConfig.get().overrides.task if is_multirun() else sys.argv[1:]
    arguments = [argument for argument in given if not argument.startswith("run_dir=")]
    return " ".join(["amc", *arguments])


def commit() -> str | None:
    """Return the commit of the source tree ("+dirty" with uncommitted changes), or None outside of one."""
    root = Path(__file__).resolve().parents[2]
    try:
        head = _git(root, "rev-parse", "HEAD")
        dirty = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+dirty" if dirty else "")


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
