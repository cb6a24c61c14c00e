"""``search.jsonl``: one line for each episode, written when it ends."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from agents import Episode, OnEpisode, SearchEnded
from agents.transfer import experience_bytes
from amc.budget.budget import Cost
from amc.errors import AmcError
from amc.files import atomic_write_bytes, temporary_name
from amc.reading import read_lines
from amc.result import Evaluation
from experiments.config.arena import Arena
from experiments.run.held_out import HeldOut

FEWEST_LESSONS, MOST_LESSONS = 5, 1000
"""Different networks below which a search has learned nothing that is worth passing on, and that suffice."""


class EpisodeWriter:
    """Writes episodes to a file and keeps the best one.

    Each search writes the file from the start: an agent that starts again from its seed repeats the lines. If
    the search fails, the file of an earlier one is as it was, and so is its record. Both are moved away
    meanwhile: a search that is stopped or killed must not leave its episodes beside the record of another.

    Args:
        path: the file.
        latency: predicts milliseconds from widths; if given, they are written with every episode.
        record: the file with what an earlier search has found; None if there is none.

    Attributes:
        count: episodes written.
        best_value: return of the best eligible episode, minus infinity before there is one.
        best_evaluation: its evaluation.
        cpu_seconds: CPU time of all different evaluations, in seconds.
    """

    def __init__(self, path: Path, latency: Cost | None = None, record: Path | None = None) -> None:
        self._former = [MovedAway(each) for each in (record, path) if each is not None]
        try:
            self._file = path.open("w")
        except OSError:
            self._restore()
            raise
        self._latency = latency
        self._seen: set[tuple[int, ...]] = set()
        self.best_value = -math.inf
        self.best_evaluation: Any = None
        self.count = 0
        self.cpu_seconds = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        failed = isinstance(error, Exception)
        try:
            self._file.close()
        except OSError:  # a full disk: closing tries again to write what could not be written
            failed = True
            if error is None:
                raise
        finally:
            if failed:
                self._restore()
            else:
                self._remove()

    def _restore(self) -> None:
        for each in self._former:
            each.restore()

    def _remove(self) -> None:
        for each in self._former:
            each.remove()

    @property
    def distinct(self) -> int:
        """Number of different networks that were evaluated."""
        return len(self._seen)

    def improves(self, episode: Episode) -> bool:
        """Return whether an episode is better than all eligible ones before it."""
        return episode.eligible and episode.value > self.best_value

    def write(self, episode: Episode, evaluation: Evaluation, held_out: float | None = None) -> None:
        """Append an episode, with its network's score on unseen images if it has one."""
        if evaluation.widths not in self._seen:
            self._seen.add(evaluation.widths)
            self.cpu_seconds += evaluation.seconds
        self._file.write(
            json.dumps(_line(episode, evaluation, self._latency, held_out), allow_nan=False) + "\n"
        )
        self._file.flush()
        self.count += 1
        if self.improves(episode):
            self.best_value, self.best_evaluation = episode.value, evaluation


class Lessons:
    """Collects the different networks within the budget that a search evaluates, up to ``MOST_LESSONS``.

    Args:
        arena: the problem that is searched.
    """

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._episodes: dict[tuple[float, ...], Episode] = {}

    def note(self, episode: Episode) -> None:
        """Take note of an episode."""
        if episode.eligible and len(self._episodes) < MOST_LESSONS:
            self._episodes.setdefault(episode.network, episode)

    def keep(self, path: Path, network: str) -> None:
        """Write what the search has learned; nothing if it met too few networks or had no error curves."""
        path.unlink(missing_ok=True)
        if len(self._episodes) < FEWEST_LESSONS or not self._arena.weighable:
            return
        with suppress(AmcError):  # a reward of the user's may have no value for the dense network
            found = self._arena.experience([*self._episodes.values()])
            atomic_write_bytes(path, experience_bytes(found, network))


class MovedAway:
    """A file that is moved away for the time of a command, and back if that fails: a full disk allows it.

    The file has a temporary name meanwhile, which the next command removes if this one is killed.

    Args:
        path: the file, which may not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._aside = temporary_name(path) if path.exists() else None
        if self._aside is not None:
            os.replace(path, self._aside)

    def restore(self) -> None:
        """Move the file back; a new one in its place stays if there was none."""
        if self._aside is not None:
            os.replace(self._aside, self._path)

    def remove(self) -> None:
        """Remove the file: a new one has its place."""
        if self._aside is not None:
            self._aside.unlink()


class Former:
    """The content of a file before a command, to be restored if the command fails.

    Args:
        path: the file, which may not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content = path.read_bytes() if path.exists() else None
        self._time = path.stat().st_mtime_ns if path.exists() else 0

    def restore(self) -> None:
        """Write the former content, with its time; a new file stays as it is."""
        if self._content is None:
            return
        if not self._path.exists() or self._path.read_bytes() != self._content:
            atomic_write_bytes(self._path, self._content)
        os.utime(self._path, ns=(self._time, self._time))


def watching(
    writer: EpisodeWriter,
    bar: tqdm,
    log: Callable[[dict[str, float], int], None],
    keep: Callable[[Episode], None] = lambda episode: None,
    name: str = "search",
    held_out: HeldOut | None = None,
) -> OnEpisode:
    """Return the callback of an agent, which writes, displays and tracks every episode.

    Args:
        writer: writes the episodes.
        bar: shows the best score.
        log: receives metrics and the number of the episode.
        keep: called with every episode that is better than those before it.
        name: prefix of the metrics.
        held_out: scores such episodes on unseen images, and ends the search (``SearchEnded``).
    """

    def on_episode(episode: Episode) -> None:
        evaluation = episode.info["evaluation"]
        improved = writer.improves(episode)
        unseen = held_out.watch(episode, improved) if held_out is not None else None
        writer.write(episode, evaluation, unseen)
        if improved:
            keep(episode)
        best = writer.best_evaluation
        if best is not None:
            accuracy = {} if best.top1 is None else {"best_top1": f"{best.top1:.2f}%"}
            other = {} if held_out is None else {"held_out": f"{held_out.best_score:.4g}"}
            bar.set_postfix(**accuracy, best=f"{writer.best_value:.4g}", **other)
        bar.update()
        metrics = {"return": episode.value, "top1": evaluation.top1, "macs_ratio": evaluation.macs_ratio}
        metrics |= dict(episode.learning)
        known = {f"{name}/{key}": value for key, value in metrics.items() if value is not None}
        known |= {} if unseen is None else {f"{name}/held_out": unseen}
        log(known, episode.index)
        if held_out is not None and held_out.enough:
            raise SearchEnded

    return on_episode


def _line(
    episode: Episode, evaluation: Evaluation, latency: Cost | None, held_out: float | None
) -> dict[str, Any]:
    return {
        "episode": episode.index,
        "phase": episode.phase,
        "return": episode.value,
        **({} if held_out is None else {"held_out": held_out}),
        "top1": evaluation.top1,
        "loss": evaluation.loss,
        "agreement": evaluation.agreement,
        "likeness": evaluation.likeness,
        "macs": evaluation.macs,
        "params": evaluation.params,
        "macs_ratio": evaluation.macs_ratio,
        "params_ratio": evaluation.params_ratio,
        **({"latency_ms": latency(evaluation.widths)} if latency else {}),
        "widths": list(evaluation.widths),
        "requested": list(episode.requested),
        "executed": list(episode.executed),
        **({"learning": dict(episode.learning)} if episode.learning else {}),
        "stopped_after": None,  # a field of earlier releases, which could stop an evaluation early
        "seconds": evaluation.seconds,
    }


_NUMBER = (float, None)
_EPISODE: dict[str, Any] = {
    "episode": int,
    "phase": str,
    "return": float,
    "top1": _NUMBER,
    "widths": [int],
    **dict.fromkeys(("macs", "params", "macs_ratio", "params_ratio"), float),
    **dict.fromkeys(("latency_ms?", "loss?", "agreement?", "likeness?", "seconds?"), _NUMBER),
}


def read_episodes(path: Path) -> list[dict[str, Any]]:
    """Return the episodes of ``search.jsonl``, without a half-written last line of a killed search.

    Raises:
        FileError: another line is malformed.
    """
    return read_lines(path, _EPISODE, "run stages=[search] again: networks that are known are looked up")
