"""The origin of a result: commit, versions, device, data, command."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from amc.errors import FileError
from amc.files import atomic_write_json
from amc.reading import read_json, set_aside
from experiments.command.foreign import Rules
from experiments.command.multirun import is_multirun
from experiments.command.overrides import compact, config_options, typed, without_prefixes
from experiments.config.stages import STAGES
from experiments.run.folder import RunFolder

PACKAGES = (
    "amc-search", "torch", "torchvision", "torch-pruning", "gymnasium", "stable-baselines3", "numpy",
    "hydra-core", "onnx", "onnxruntime",
)  # fmt: skip


SHAPE = {
    "commit": (str, None),
    "stage_commits?": (None, {...: (str, None)}),
    "command?": str,
    "tuned_by?": str,
    "sparsified_by?": str,
    "data?": {"name?": str},
    "seed?": int,
}
"""What ``provenance.json`` must hold; see ``amc.reading``."""
FORMER = {"finetune": "tuned_by", "sparsify": "sparsified_by"}
"""Stages that train -> the name of their command, which stands beside that of a later one."""


def provenance(*, seed: int, data: Mapping[str, str], device: str) -> dict[str, Any]:
    """Return the facts that are needed to reproduce a run.

    Args:
        seed: seed of the run.
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
        "versions": versions_of(PACKAGES),
    }


def stage_commits(folder: Path, stage: str, commit: str | None) -> dict[str, str | None]:
    """Return the commit at which each stage of a run folder was last run; ``stage`` runs now at ``commit``.

    A provenance file of an earlier release has one commit for all stages.
    """
    return {**_known_commits(folder), stage: commit}


def _known_commits(folder: Path) -> dict[str, str | None]:
    """Return the commits of the recorded stages of a folder, as far as its provenance tells them."""
    if (before := _former(folder)) is None:
        return {}
    recorded = recorded_stages(folder)
    if (by_stage := before.get("stage_commits")) is None:
        return dict.fromkeys(recorded, before["commit"])
    return {name: by_stage[name] for name in recorded if name in by_stage}


def kept_facts(folder: Path) -> dict[str, Any]:
    """Return what stays true of a folder's provenance after a command that has run no stage in it."""
    before, commits = _former(folder) or {}, _known_commits(folder)
    kept = {name: before[name] for name in FORMER.values() if name in before}
    return {**({"stage_commits": commits} if commits else {}), **kept}


def hand_over(source: Path, target: Path, stage: str) -> None:
    """Tell ``target``, which has got the record of a stage, at which commit ``source`` has run it."""
    commits = _known_commits(source)
    if stage in commits:
        origin = {**(_former(source) or {}), **(_former(target) or {})}
        origin["stage_commits"] = {**_known_commits(target), stage: commits[stage]}
        atomic_write_json(RunFolder(target).provenance, origin)


def former_commands(folder: Path, stage: str, command: str) -> dict[str, str]:
    """Return the commands that trained a folder's networks before ``stage`` runs now, by ``FORMER``.

    A later command may have other settings of trainings, which say nothing about these networks. Those that
    are ``command``, which runs now, are left out.
    """
    before, recorded = _former(folder) or {}, recorded_stages(folder)
    trained = [name for own, name in FORMER.items() if own != stage and own in recorded]
    found = {name: before.get(name) or before.get("command") for name in trained}
    return {name: former for name, former in found.items() if former not in (None, command)}


def _former(folder: Path) -> dict[str, Any] | None:
    """Return the provenance of the stages so far; a damaged one is set aside."""
    path = RunFolder(folder).provenance
    if not path.exists():
        return None
    try:
        return read_json(path, SHAPE, "it is written again by the next stage")
    except FileError as error:
        set_aside(path, error)
        return None


def recorded_stages(folder: Path) -> list[str]:
    """Return the stages that a run folder has a record of, in the order of ``STAGES``."""
    return [name for name in STAGES if RunFolder(folder).record_of(name).exists()]


def command() -> str:
    """Return the command line of this job without its run folder."""
    given = sys.argv[1:]
    if is_multirun():
        given = [*config_options(HydraConfig.get()), *typed(HydraConfig.get())]
    arguments = [argument for argument in given if not argument.startswith("run_dir=")]
    words = [compact(each) for each in without_prefixes(arguments, Rules().free)]
    return " ".join(["amc", *map(_quoted, words)])


def _quoted(word: str) -> str:
    """Return a word of a command, quoted if white space, quotes or backslashes of it would be lost."""
    try:
        return word if shlex.split(word) == [word] else shlex.quote(word)
    except ValueError:  # a quote that is not closed
        return shlex.quote(word)


def commit() -> str | None:
    """Return the commit of the source tree, with "+dirty" for uncommitted changes; None outside of git.

    It is the commit at the first call: a process goes on with the code that it has begun with.
    """
    return _commit_of(Path(__file__).resolve().parents[2])


@cache
def _commit_of(root: Path) -> str | None:
    """Return the commit of ``root``, or None if a repository does not begin there.

    An installed package may lie in a repository of its user, whose commits say nothing about it.
    """
    try:
        if Path(_git(root, "rev-parse", "--show-toplevel")).resolve() != root:
            return None
        head = _git(root, "rev-parse", "HEAD")
        dirty = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+dirty" if dirty else "")


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def versions_of(packages: Iterable[str]) -> dict[str, str | None]:
    """Return the installed version of each package; None of one that is not installed."""
    return {name: _version(name) for name in packages}


@cache
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
