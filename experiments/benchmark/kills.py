"""Kills searches at random moments and compares: ``python -m experiments.benchmark kills --kills 20``.

A small job (digits) is run once unbroken. Then it is started again and again in folders of its own, killed
with SIGKILL at a random moment and started a second time with the same command. Strategy, episodes (their
times apart), the agent's weights and the pruned and fine-tuned networks must be the same to the byte.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from amc.errors import AmcError

JOB = ("agent.episodes=60", "finetune.epochs=2", "threads=1")
STAGES = "stages=[search,prune,finetune]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments, and of the job")
    parser.add_argument("overrides", nargs="*", help="of the job, as amc takes them")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; see the module's docstring.

    Raises:
        AmcError: the job itself fails.
    """
    moments = random.Random(options.seed)
    job = [*JOB, f"seed={options.seed}", *options.overrides]
    with tempfile.TemporaryDirectory() as scratch:
        trained = Path(scratch) / "trained"
        _finish([*job, "stages=[train]", f"run_dir={trained}"])
        whole = shutil.copytree(trained, Path(scratch) / "whole")
        start = time.perf_counter()
        _finish([*job, STAGES, f"run_dir={whole}"])
        seconds = time.perf_counter() - start
        expected = _results(whole)
        rows = []
        for number in tqdm(range(options.kills), desc="kills", disable=None):
            broken = Path(scratch) / f"broken_{number}"
            command = [*job, STAGES, f"run_dir={broken}"]
            moment = moments.uniform(0, seconds)
            shutil.copytree(trained, broken)
            while not _kill(command, moment):  # it was quicker this time and ended before
                shutil.rmtree(broken)
                shutil.copytree(trained, broken)
                moment = moments.uniform(0, moment)
            done = _episodes(broken)
            _finish(command)
            results = _results(broken)
            differs = sorted(name for name in expected if results.get(name) != expected[name])
            rows.append({"after_seconds": round(moment, 2), "episodes_done": done, "differs": differs})
            shutil.rmtree(broken)
    return {
        "kills": len(rows),
        "identical": sum(not row["differs"] for row in rows),
        "unbroken_seconds": round(seconds, 2),
        "compared": sorted(expected),
        "runs": rows,
    }


def _command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "experiments.main", *arguments]


def _finish(arguments: list[str]) -> None:
    done = subprocess.run(_command(arguments), capture_output=True, text=True)
    if done.returncode:
        raise AmcError(f"the job failed with status {done.returncode}: {done.stderr.strip()[-400:]}")


def _kill(arguments: list[str], moment: float) -> bool:
    """Start a job and kill it after so many seconds; return whether it was still at work."""
    process = subprocess.Popen(_command(arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        process.kill()
    return process.wait() < 0


def _episodes(folder: Path) -> int:
    log = folder / "search.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def _results(folder: Path) -> dict[str, Any]:
    """Everything that must be the same, comparable with ``==``."""
    files = ("strategy.json", "pruned.safetensors", "model.safetensors")
    found: dict[str, Any] = {name: (folder / name).read_bytes() for name in files}
    lines = [json.loads(line) for line in (folder / "search.jsonl").read_text().splitlines()]
    found["search.jsonl"] = [{key: line[key] for key in line if key != "seconds"} for line in lines]
    if (folder / "agent.zip").exists():
        with zipfile.ZipFile(folder / "agent.zip") as archive, archive.open("policy.pth") as file:
            weights = torch.load(file, weights_only=True)
        found["agent.zip"] = {name: tensor.tolist() for name, tensor in weights.items()}
    return found
