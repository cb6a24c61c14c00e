"""The folder of one run: the names of its files, the records of its stages, and what no longer holds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from amc.errors import AmcError, FileError
from amc.files import atomic_write_json
from amc.loading import STRATEGY, WEIGHTS

DENSE = "dense.safetensors"
PRUNED = "pruned.safetensors"
LATENCY_MODEL = "latency_model.json"
SEARCH = "search.jsonl"
PROVENANCE = "provenance.json"
MADE_OF_PRUNED = ("finetune", "compare", "evaluate", "export", "benchmark", "serve")
"""Stages whose records are about the pruned network."""


class RunFolder:
    """The files of one run.

    Args:
        path: the folder; ``made`` creates it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dense = path / DENSE
        self.pruned = path / PRUNED
        self.model = path / WEIGHTS
        self.sparse = path / "sparse.safetensors"
        self.strategy = path / STRATEGY
        self.search = path / SEARCH
        self.evaluations = path / "evaluations.jsonl"
        self.correlate = path / "correlate.jsonl"
        self.agent = path / "agent.zip"
        self.latency_model = path / LATENCY_MODEL
        self.exports = path / "exports"
        self.pareto = path / "pareto.json"
        self.provenance = path / PROVENANCE
        self.report = path / "report"
        self.budgets = path / "budgets"
        self.sparsity = path / "sparsity"

    @classmethod
    def made(cls, path: Path) -> RunFolder:
        """Create the folder if need be.

        Raises:
            AmcError: it cannot be made or written to.
        """
        try:
            (path / "stages").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AmcError(f"run_dir={path} cannot be made: {error.strerror}") from error
        if not os.access(path, os.W_OK):
            raise AmcError(f"run_dir={path} is not writable")
        return cls(path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.name

    def checkpoint(self, name: str) -> Path:
        """Return the file of an unfinished training."""
        return self.path / f"{name}.ckpt.safetensors"

    def require(self, path: Path, stage: str) -> Path:
        """Return a file of the folder that a stage writes.

        Raises:
            FileError: it is not there; names the stage.
        """
        if not path.exists():
            raise FileError(f"{self} has no {path.name}: run stages=[{stage}] on it first")
        return path

    def record(self, stage: str, facts: dict[str, Any]) -> None:
        """Write what a stage found."""
        atomic_write_json(self._record_of(stage), facts)

    def recorded(self, stage: str) -> dict[str, Any] | None:
        """Return what a stage found, if it has been run.

        Raises:
            FileError: the record is damaged.
        """
        path = self._record_of(stage)
        if not path.exists():
            return None
        try:
            facts = json.loads(path.read_text())
        except ValueError as error:
            raise FileError(f"{path} is damaged ({error}): run stages=[{stage}] again") from error
        if not isinstance(facts, dict):
            raise FileError(f"{path} holds no JSON object: run stages=[{stage}] again")
        return facts

    def forget(self, *stages: str) -> None:
        """Remove the records of stages that no longer hold."""
        for stage in stages:
            self._record_of(stage).unlink(missing_ok=True)

    def forget_pruned(self) -> None:
        """Remove what was made of another strategy than the present one."""
        self.forget("prune", *MADE_OF_PRUNED)
        self.pruned.unlink(missing_ok=True)
        self.model.unlink(missing_ok=True)

    def _record_of(self, stage: str) -> Path:
        return self.path / "stages" / f"{stage}.json"
