"""Trackers, which receive the metrics of a run: wandb, TensorBoard or none."""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amc.errors import AmcError, FileError, SettingError, UnavailableError, did_you_mean
from amc.files import append_line, atomic_write_text
from amc.reading import read_lines, set_aside
from experiments.config.schema import Config, TrackerConfig

if TYPE_CHECKING:
    from experiments.run.folder import RunFolder

Metrics = Mapping[str, float | int | str]

Files = Mapping[str, Sequence[Path]]
"""What files are, such as ``strategy`` -> the files that exist."""

MODES = ("online", "offline", "disabled")
"""Values of ``tracker.mode``, wandb's own."""
_SWEEP = "multirun.yaml"
"""Hydra's file in the folder of a multirun, written before its first job."""


@dataclass(frozen=True)
class Tracker:
    """Receives the metrics of a run.

    Attributes:
        log: called with metrics and a step during a stage.
        finish: called with a summary, the files of the run, and whether it has failed or was stopped, at its
            end.
    """

    log: Callable[[Metrics, int], None]
    finish: Callable[[Metrics, Files, bool], None]


def check_tracker(config: TrackerConfig) -> None:
    """Refuse an unknown tracker or mode.

    Raises:
        SettingError: names the setting.
    """
    for key, value, known in (("name", config.name, _MAKERS), ("mode", config.mode, MODES)):
        if value not in known:
            hint = did_you_mean(value, known)
            raise SettingError(f"tracker.{key} is {value!r}; expected one of {', '.join(known)}{hint}")


def make_tracker(config: Config, folder: Path) -> Tracker:
    """Start the tracker that the configuration names.

    Raises:
        SettingError: the tracker is unknown.
        UnavailableError: its package is missing.
        AmcError: it cannot start.
    """
    check_tracker(config.tracker)
    return _MAKERS[config.tracker.name](config, folder)


def group_of(config: Config, folder: Path) -> str | None:
    """Return the group of a run: the given one, else the multirun or the job of several budgets around it.

    Args:
        config: the configuration.
        folder: the run folder.
    """
    if config.tracker.group is not None:
        return config.tracker.group
    for above in folder.resolve().parents[:2]:
        if (above / _SWEEP).exists():
            return above.name
    job = _job_of(folder)
    return None if job is None else job.name


def _job_of(folder: Path) -> Path | None:
    """Return the folder of the job of several budgets that a run folder is a part of, or None."""
    from experiments.run.folder import RunFolder  # which imports torch

    job = folder.resolve().parent
    return job if RunFolder(job).records.is_dir() else None


def kept_files(folder: RunFolder, *, report: bool) -> Files:
    """Return the files of a run that a tracker may keep: strategy, report and the recorded ONNX files.

    Args:
        folder: of the run.
        report: whether its report is about the networks that it has now, and is kept.
    """
    asked = {
        "strategy": [folder.strategy],
        "report": [folder.report.with_suffix(".html")] if report else [],
        "model": sorted(path for path in folder.exported() if path.suffix == ".onnx"),
    }
    found = {kind: [path for path in paths if path.exists()] for kind, paths in asked.items()}
    return {kind: paths for kind, paths in found.items() if paths}


_NO_RESULTS = frozenset({"widths", "limits", "ratios", "settings", "left_float", "folder"})
"""Facts of stages that a summary leaves out: what was asked for, and what is listed by layer."""


def summary_of(stage: str, facts: Mapping[str, Any]) -> Metrics:
    """Return the numbers and words that a stage found, by their path, such as ``evaluate/pruned/top1``.

    Of rounds and steps the last counts, of a correlation its value without the interval. Timings are named by
    the runtime: ``benchmark/onnxruntime/speedup``.

    Args:
        stage: the name of the stage.
        facts: what it returned.
    """
    told = {name: value for name, value in facts.items() if name != "spearman"}
    for rows in (facts.get("rounds"), facts.get("steps")):
        told |= rows[-1] if rows else {}
    told |= {row["backend"]: _times(row) for row in facts.get("runtimes", ())}
    if throughput := facts.get("throughput"):
        told["throughput"] = {row["backend"]: _times(row) for row in throughput}
    if "spearman" in facts:
        told["spearman"] = _values(facts["spearman"])
    return dict(_flat(told, stage))


def _flat(value: object, path: str) -> Iterator[tuple[str, float | int | str]]:
    if isinstance(value, Mapping):
        for key, own in value.items():
            if key not in _NO_RESULTS:
                yield from _flat(own, f"{path}/{key}")
    elif isinstance(value, int | float | str):
        yield path, value


def _times(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the milliseconds and speed-ups that stage ``benchmark`` has measured on a runtime."""
    found = {"": row["comparison"], **{f"{name}/": own for name, own in row.get("others", {}).items()}}
    return {
        f"{prefix}{name}": value
        for prefix, own in found.items()
        if own is not None
        for name, value in (
            ("speedup", own["speedup"]),
            ("dense_ms", own["dense"]["median_ms"]),
            ("ms", own["pruned"]["median_ms"]),
        )
    }


def _values(found: object) -> object:
    """Return correlations without their intervals, which follow each value in a list."""
    if isinstance(found, Mapping):
        return {name: _values(own) for name, own in found.items()}
    return found[0] if isinstance(found, list | tuple) else found


_VALUES = {...: (float, str, bool)}
_SENT = {"id?": str, "log?": _VALUES, "summary?": _VALUES}


class Sent:
    """What the commands of one run folder have sent to wandb, in ``RUN/wandb/sent.jsonl``.

    They are one run of wandb, by its id. The service continues it if it was online; it cannot continue a run
    that was offline: a part that is uploaded replaces the earlier ones (wandb issue 5865). Such a part gets
    all that was sent before, so that it is the whole run.

    Args:
        folder: the run folder.

    Attributes:
        id: wandb's id of the run.
        metrics: what was logged, in order.
        summary: the numbers of the stages that have ended.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "wandb" / "sent.jsonl"
        found = self._read()
        kept = [entry["id"] for entry in found if "id" in entry]
        self.id: str = _given_id(folder) or (kept or [uuid.uuid4().hex[:8]])[-1]
        self.metrics: list[Metrics] = [entry["log"] for entry in found if "log" in entry]
        self.summary: Metrics = {k: v for entry in found for k, v in entry.get("summary", {}).items()}
        self._known = set(map(_text, self.metrics))
        self._path.parent.mkdir(exist_ok=True)
        lines = [{"id": self.id}, *({"log": entry} for entry in self.metrics), {"summary": self.summary}]
        atomic_write_text(self._path, "".join(json.dumps(line) + "\n" for line in lines))

    def note(self, metrics: Metrics) -> bool:
        """Keep metrics; return whether they are new: a resumed search repeats its first episodes."""
        new = (text := _text(metrics)) not in self._known
        if new:
            self._known.add(text)
            self._append("log", text)
        return new

    def conclude(self, summary: Metrics) -> None:
        """Keep the numbers of the stages that have ended."""
        self._append("summary", _text(summary))

    def _append(self, kind: str, text: str) -> None:
        append_line(self._path, f'{{"{kind}": {text}}}')

    def _read(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        try:
            return read_lines(self._path, _SENT, "remove it: the run then gets another id")
        except FileError as error:
            set_aside(self._path, error)
            return []


def _given_id(folder: Path) -> str | None:
    """Return the id that the environment gives, as a wandb agent does; each budget of a job has its own."""
    given = os.environ.get("WANDB_RUN_ID") or None
    return given if given is None or _job_of(folder) is None else f"{given}-{folder.name}"


def _text(metrics: Metrics) -> str:
    """Return metrics as JSON, which lacks NaN and infinity: they become texts, as wandb takes them."""
    plain = {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in metrics.items()
    }
    return json.dumps(plain)


def _none(config: Config, folder: Path) -> Tracker:
    return Tracker(lambda metrics, step: None, lambda summary, files, failed: None)


def _wandb(config: Config, folder: Path) -> Tracker:
    import wandb

    tracker, sent = config.tracker, Sent(folder)
    try:
        run = wandb.init(
            id=sent.id,
            resume="allow" if tracker.mode == "online" else None,
            project=tracker.project,
            entity=tracker.entity,
            group=group_of(config, folder),
            mode=tracker.mode,  # type: ignore[arg-type]
            dir=str(folder),
            name=folder.name,
            config=asdict(config),
            settings=wandb.Settings(silent=True),
        )
    except wandb.Error as error:
        raise AmcError(f"wandb cannot start: {error}; tracker.mode=offline needs no account") from error

    if tracker.mode == "online" and run.url is not None:  # wandb warns where an offline run is asked for it
        print(f"wandb: {run.url}")
    if not run.resumed:
        for metrics in sent.metrics:
            run.log(dict(metrics))
        run.summary.update(dict(sent.summary))

    def finish(summary: Metrics, files: Files, failed: bool) -> None:
        sent.conclude(summary)
        run.summary.update(dict(summary))
        for kind, paths in files.items():
            artifact = wandb.Artifact(f"{kind}-{run.id}", type=kind)
            for path in paths:
                artifact.add_file(str(path))
            run.log_artifact(artifact)
        run.finish(exit_code=int(failed))
        if tracker.mode == "offline":
            place = os.path.relpath(run.settings.sync_dir)
            print(f"wandb: offline, in {place}; with an account: wandb sync {place}")

    def log(metrics: Metrics, step: int) -> None:
        # wandb's own step must rise, but each stage counts from 0: the stage's step is sent as a metric.
        if sent.note(entry := {**metrics, "step": step}):
            run.log(entry)

    return Tracker(log, finish)


def _tensorboard(config: Config, folder: Path) -> Tracker:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UnavailableError(
            "tracker=tensorboard needs its package: pip install amc-search[tensorboard]"
        ) from error
    writer = SummaryWriter(str(folder / "tensorboard"))

    def log(metrics: Metrics, step: int) -> None:
        for name, value in metrics.items():
            if isinstance(value, int | float):
                writer.add_scalar(name, value, step)

    def finish(summary: Metrics, files: Files, failed: bool) -> None:
        for name, value in summary.items():
            if isinstance(value, int | float):
                writer.add_scalar(f"summary/{name}", value, 0)
        for path in files.get("strategy", ()):
            writer.add_text("strategy", f"```json\n{path.read_text()}\n```")
        writer.add_text("config", f"```json\n{json.dumps(asdict(config), indent=1)}\n```")
        writer.close()

    return Tracker(log, finish)


_MAKERS: Mapping[str, Callable[[Config, Path], Tracker]] = {
    "none": _none,
    "wandb": _wandb,
    "tensorboard": _tensorboard,
}
