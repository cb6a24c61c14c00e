"""The folder of one run: the names of its files, the records of its stages, and removing outdated ones."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from amc.digest import digest
from amc.errors import AmcError, FileError
from amc.files import atomic_write_bytes, atomic_write_json
from amc.loading import STRATEGY, WEIGHTS
from amc.quantization import storage
from amc.reading import read_json
from amc.strategy import Strategy

DENSE = "dense.safetensors"
PRUNED = "pruned.safetensors"
LATENCY_MODEL = "latency_model.json"
SEARCH = "search.jsonl"
PICTURES = "pictures"
"""Key of ``trained_on``: a hash of every picture that the dense network was trained on."""
PLACES = "places"
"""Key of the same pictures' places on the machine, which tell them under another ``data.root``, too."""
PROVENANCE = "provenance.json"
MADE_OF_PRUNED = ("finetune", "quantize", "compare", "evaluate", "export", "benchmark", "serve")
"""Stages whose records describe the pruned network."""
MADE_OF = "made_of"
"""Key of a record: digests of the dense network and the strategy that its facts are about."""
_SCORE = (float, None)
JUDGED = {
    "top1": _SCORE,
    **dict.fromkeys(("divergence?", "macs?", "params?", "images?", "lost?", "gained?"), float),
    "corrupted?": {...: float},
}
"""Shape of what stage ``evaluate`` tells of a network."""
NETWORKS = ("dense", "pruned", "finetuned", "quantized")
"""Networks in the record of stage ``evaluate``, and in a report."""
_TIMES = {"median_ms": float}
_MEASURED = {
    "backend": str,
    "batch?": int,
    "unavailable?": (str, None),
    "comparison": (None, {"speedup": float, "dense": _TIMES, "pruned": _TIMES}),
    **dict.fromkeys(("file_bytes?", "peak_memory_bytes?"), (None, {...: float})),
}
_SERVED = dict.fromkeys(("cpu_utilisation", "p50_ms", "p99_ms", "missed", "requests"), float)
_FILE = {
    "format": str,
    "file": str,
    "bytes": int,
    "max_abs_difference?": (float, None),
    **dict.fromkeys(("note?", "failure?"), (str, None)),
}
_JUDGING = {"limits?": {...: float}, "fingerprint?": str}
"""What a score of networks depends on, beside the reward."""
_ANY = {"stage_seconds?": float, "resumed?": bool}
"""What every record may hold."""
_BEGUN = ".begun"
"""Ending of an empty file beside the records: the command that began the stage has not ended."""
_SHAPES: dict[str, Any] = {
    "train": {"val_top1?": _SCORE, "held_out?": (int, None)},
    "search": {
        **dict.fromkeys(("best_top1?", "dense_top1?", "dense_return?", "best_return?"), _SCORE),
        **dict.fromkeys(("agent?", "reward?", "advice?"), str),
        **dict.fromkeys(("images?", "best_episode?"), int),
        "error_curves?": {...: [[float]]},
        "greedy_widths?": ([int], None),
        "group_names?": [str],
        **_JUDGING,
    },
    "profile": {"target": {"runtime": str, "device": str}, "dense_ms": float},
    "verify": {
        **dict.fromkeys(("predicted_ratio", "measured_ratio"), float),
        "repairs": int,
        "on?": {"device?": str, "version?": str, ...: ...},
    },
    "proxies": {"trusted?": bool, "verdict": str, "rows": [{...: ...}], "reward": str, **_JUDGING},
    "choose": {
        "candidates": [{"widths": [int], "return": float, "top1": float}],
        "chosen": int,
        "images": str,
        "epochs": int,
    },
    "finetune": {
        **dict.fromkeys(("val_top1?", "pruned_top1?", "finetuned_top1?"), _SCORE),
        "epochs?": int,
        "kept?": str,
    },
    "evaluate": {"dense": JUDGED, **{f"{name}?": JUDGED for name in NETWORKS[1:]}},
    "benchmark": {"runtimes": [_MEASURED], "throughput?": [_MEASURED]},
    "compare": {...: (float, bool, {"top1?": _SCORE, "top1_pruned?": _SCORE, "top1_finetuned?": _SCORE})},
    "export": {
        "files": [_FILE],
        "left_out?": {...: str},
        "quantized?": (None, {"method": str, "files": [_FILE]}),
        "predict?": [{"file": str}],
    },
    "serve": {"rate": float, "backend": str, "deadline_ms": float, "served": {...: _SERVED}},
}
"""What the records of stages must hold; see ``amc.reading``."""


class RunFolder:
    """The files of one run; ``report``, ``budgets`` and ``sparsity`` are names without a suffix.

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
        self.trained_on = path / "trained_on.safetensors"
        self.search = path / SEARCH
        self.evaluations = path / "evaluations.jsonl"
        self.unseen = path / "unseen.jsonl"
        self.choose = path / "choose.jsonl"
        self.correlate = path / "correlate.jsonl"
        self.agent = path / "agent.zip"
        self.experience = path / "experience.safetensors"
        self.latency_model = path / LATENCY_MODEL
        self.exports = path / "exports"
        self.pareto = path / "pareto.json"
        self.pareto_strategies = path / "pareto"
        self.provenance = path / PROVENANCE
        self.report = path / "report"
        self.budgets = path / "budgets"
        self.sparsity = path / "sparsity"
        self.hydra = path / ".hydra"
        self.records = path / "stages"

    @classmethod
    def made(cls, path: Path) -> RunFolder:
        """Create the folder if it does not exist.

        Raises:
            AmcError: it cannot be created or written to.
        """
        folder = cls(path)
        try:
            folder.records.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AmcError(f"run_dir={path} cannot be made: {error.strerror}") from error
        if not os.access(path, os.W_OK):
            raise AmcError(f"run_dir={path} is not writable")
        return folder

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.name

    def checkpoint(self, name: str) -> Path:
        """Return the file that holds the state of the unfinished training ``name``."""
        return self.path / f"{name}.ckpt.safetensors"

    def require(self, path: Path, stage: str, other: str = "") -> Path:
        """Return ``path``, a file of this folder that ``stage`` writes.

        Args:
            path: a file of this folder.
            stage: the stage that writes it.
            other: end of the message: what would do instead.

        Raises:
            FileError: the file does not exist; the message names the stage.
        """
        if path.exists():
            return path
        if not any(self.records.glob("*.json")) and not self.dense.exists():
            raise FileError(
                f"{self} has no {path.name} and no other result of a run: name the folder of a run with "
                f"run_dir=RUN, or run stages=[{stage}] first{other}"
            )
        raise FileError(f"{self} has no {path.name}: run stages=[{stage}] on it first{other}")

    def record(self, stage: str, facts: dict[str, Any]) -> None:
        """Write the facts that a stage found."""
        atomic_write_json(self.record_of(stage), facts)

    def recorded(self, stage: str) -> dict[str, Any] | None:
        """Return the facts that a stage found, or None if it has not been run.

        Raises:
            FileError: the record is damaged.
        """
        if not self.record_of(stage).exists():
            return None
        found: dict[str, Any] = read_json(
            self.record_of(stage), _ANY | _SHAPES.get(stage, {}), f"run stages=[{stage}] again"
        )
        return found

    def forget(self, *stages: str) -> None:
        """Remove the records of stages whose facts are outdated; of ``export`` and ``quantize`` their files.

        A quantization of the dense network, beside a pruned one, would be loaded in its place.
        """
        if "export" in stages and (files := self.exported()):
            self.remove_exported([*files, self.exports / "README.md"])
        if "quantize" in stages:
            storage.remove(self.path)
        for stage in stages:
            self.record_of(stage).unlink(missing_ok=True)

    def exported(self) -> list[Path]:
        """Return the files in ``exports`` that the record of stage ``export`` names.

        A damaged record names none, and one that was changed by hand cannot name files elsewhere.
        """
        try:
            record = self.recorded("export") or {}
        except FileError:
            return []
        rows = [*record.get("files", ()), *(record.get("quantized") or {}).get("files", ())]
        rows += record.get("predict", ())
        places = dict.fromkeys(Path(str(row["file"])) for row in rows)
        return [self.path / place for place in places if _is_exported(place)]

    def remove_exported(self, files: Iterable[Path]) -> None:
        """Remove files in ``exports``, unless that is a link to another folder."""
        if self.exports.is_symlink():
            return
        for path in files:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
                continue
            path.unlink(missing_ok=True)
            if path.suffix == ".xml":  # OpenVINO's weights lie beside it
                path.with_suffix(".bin").unlink(missing_ok=True)

    def forget_pruned(self) -> None:
        """Remove the pruned network and all records about it, because the strategy has changed."""
        self.forget("prune", *MADE_OF_PRUNED)
        self.pruned.unlink(missing_ok=True)
        self.model.unlink(missing_ok=True)

    def take_dense(self, other: RunFolder) -> None:
        """Copy another run's dense network and latency model, and what the network was trained on.

        What is known here of another training is removed: calls in this folder are checked against it.
        """
        for path, own in ((other.dense, self.dense), (other.latency_model, self.latency_model)):
            if path.exists():
                atomic_write_bytes(own, path.read_bytes())
        records = (other.record_of("train"), self.record_of("train"))
        for path, own in ((other.trained_on, self.trained_on), records):
            if path.exists():
                atomic_write_bytes(own, path.read_bytes())
            else:
                own.unlink(missing_ok=True)

    def strategy_digest(self) -> str | None:
        """Return a digest of the strategy's widths; None if there is no strategy.

        Raises:
            FileError: ``strategy.json`` is damaged.
        """
        if not self.strategy.exists():
            return None
        return digest(json.dumps(Strategy.load(self.strategy).to_json()["groups"]))

    def note_begun(self, stage: str) -> None:
        """Note that a command begins a stage."""
        atomic_write_bytes(self.records / f"{stage}{_BEGUN}", b"")

    def begun(self) -> frozenset[str]:
        """Return the stages that a command has begun which was killed, or stopped by the user."""
        return frozenset(path.name.removesuffix(_BEGUN) for path in self.records.glob(f"*{_BEGUN}"))

    def begun_below(self) -> frozenset[str]:
        """Return such stages in the folders of single budgets."""
        return frozenset(path.name.removesuffix(_BEGUN) for path in self.path.glob(f"*/stages/*{_BEGUN}"))

    def forget_begun(self, *stages: str) -> None:
        """Remove the notes on stages, here and in the folders of single budgets: their command has ended."""
        for stage in stages:
            for path in (self.records / f"{stage}{_BEGUN}", *self.path.glob(f"*/stages/{stage}{_BEGUN}")):
                path.unlink(missing_ok=True)

    def record_of(self, stage: str) -> Path:
        """Return the file with the facts that a stage found."""
        return self.records / f"{stage}.json"


def quantizes(record: dict[str, Any] | None) -> bool:
    """Whether the record of stage ``quantize`` is about a quantized network, not about ``none``."""
    return (record or {}).get("method", "none") != "none"


def _is_exported(place: Path) -> bool:
    """Whether a path within a run folder is that of a file in ``exports`` itself."""
    parts = place.parts
    return len(parts) == 2 and parts[0] == "exports" and parts[1] != ".." and "\0" not in parts[1]
