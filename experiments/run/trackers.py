"""Trackers, which receive the metrics of a run: wandb, TensorBoard or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from amc.errors import AmcError, SettingError, UnavailableError, did_you_mean
from experiments.config.schema import Config, TrackerConfig

Metrics = Mapping[str, float | int | str]

MODES = ("online", "offline", "disabled")
"""Values of ``tracker.mode``, wandb's own."""


@dataclass(frozen=True)
class Tracker:
    """Receives the metrics of a run.

    Attributes:
        log: called with metrics and a step during a stage.
        finish: called with a summary at the end of the run.
    """

    log: Callable[[Metrics, int], None]
    finish: Callable[[Metrics], None]


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


def _none(config: Config, folder: Path) -> Tracker:
    return Tracker(lambda metrics, step: None, lambda summary: None)


def _wandb(config: Config, folder: Path) -> Tracker:
    import wandb

    tracker = config.tracker
    try:
        run = wandb.init(
            project=tracker.project,
            entity=tracker.entity,
            group=tracker.group,
            mode=tracker.mode,  # type: ignore[arg-type]
            dir=str(folder),
            name=folder.name,
            config=asdict(config),
            settings=wandb.Settings(silent=True),
        )
    except wandb.Error as error:
        raise AmcError(f"wandb cannot start: {error}; tracker.mode=offline needs no account") from error

    def finish(summary: Metrics) -> None:
        run.summary.update(dict(summary))
        run.finish()

    def log(metrics: Metrics, step: int) -> None:
        # wandb's own step must rise, but each stage counts from 0: the stage's step is sent as a metric.
        run.log({**metrics, "step": step})

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

    return Tracker(log, lambda summary: writer.close())


_MAKERS: Mapping[str, Callable[[Config, Path], Tracker]] = {
    "none": _none,
    "wandb": _wandb,
    "tensorboard": _tensorboard,
}
