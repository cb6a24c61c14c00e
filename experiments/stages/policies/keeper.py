"""The strategy of a search in the run folder: the best so far, and what no longer fits it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from agents import Episode
from amc.digest import digest
from amc.errors import FileError
from amc.reading import set_aside
from amc.strategy import Strategy
from experiments.config.sections.agents import AgentConfig
from experiments.run.episodes import Former
from experiments.run.held_out import HeldOut

if TYPE_CHECKING:
    from experiments.run.run import Run


class Keeper:
    """Keeps ``strategy.json`` at the best episode, and removes files of the run that no longer fit it.

    A resumed search repeats its first episodes, which are worse. A better strategy from an earlier attempt
    of the same search is therefore kept until the search reaches it.
    """

    def __init__(self, run: Run, episodes: int, held_out: HeldOut | None) -> None:
        self._run = run
        self._episodes = episodes
        self._held_out = held_out
        self._by_unseen = run.config.agent.select == "held_out"
        self._settings = settings_digest(run.config.agent)
        self._path = run.folder.strategy
        self._old = self._start = _old_strategy(self._path)
        self._former = Former(self._path)

    def offer(self, episode: Episode) -> None:
        """Write the strategy of the best episode so far, unless an earlier attempt had a better one."""
        if self._by_unseen and self._held_out is not None and episode is not self._held_out.best:
            return
        strategy, old = self._strategy(episode), self._old
        value = "held_out" if self._by_unseen else "value"
        same = old is not None and same_search(old, strategy)
        # a network of stage choose may have been judged on no unseen images
        before = old.provenance.get(value) if same and old is not None else None
        if before is None or before < strategy.provenance[value]:
            self._write(strategy)

    def settle(self, best: Episode) -> None:
        """Write the result of a finished search."""
        self._write(self._strategy(best))
        self.stop()

    def stop(self) -> None:
        """Remove what does not fit the strategy any more, at the end of a finished or stopped search."""
        if self._leaves_stale():
            self._run.folder.forget("choose", "verify", "schedule")
            self._run.folder.forget_pruned()

    def _leaves_stale(self) -> bool:
        """Whether the pruned network is of another strategy than the one that is left.

        The record of stage ``prune`` tells its strategy. That of the start may be another, which a killed
        search has written; it counts only where no record tells.
        """
        if self._run.records.is_outdated("prune"):
            return True
        if self._old is None or self._run.records.is_of_this_strategy("prune"):
            return False
        return self._start is None or self._start.groups != self._old.groups

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Restore the strategy of an earlier search if this one fails."""
        if isinstance(error, Exception):
            self._former.restore()

    def _write(self, strategy: Strategy) -> None:
        strategy.save(self._path)
        self._old = strategy

    def _strategy(self, episode: Episode) -> Strategy:
        evaluation = episode.info["evaluation"]
        at_once = self._run.workers().concurrency
        unseen: dict[str, Any] = {}
        # a user's own agent may return another episode of the same return
        if self._held_out is not None and episode.index in self._held_out.scores:
            unseen["held_out"] = self._held_out.scores[episode.index]
        if self._by_unseen:
            unseen["select"] = "held_out"
        return self._run.make_strategy(
            evaluation.widths,
            agent=self._run.config.agent.name,
            reward=self._run.reward.name,
            value=episode.value,
            **unseen,
            episode=episode.index,
            episodes=self._episodes,
            search_val_top1=evaluation.top1,
            fingerprint=self._run.problem.fingerprint,
            agent_settings=self._settings,
            **({"workers": at_once} if at_once > 1 else {}),
        )


def same_search(one: Strategy, other: Strategy) -> bool:
    """Whether two strategies come from the same search of the same network and data.

    Those of earlier versions do not name the settings of the agent, and count as of another search.
    """
    names = ("agent", "agent_settings", "reward", "episodes", "fingerprint", "workers", "select")
    return (one.seed, one.budget, [one.provenance.get(n) for n in names]) == (
        other.seed,
        other.budget,
        [other.provenance.get(n) for n in names],
    )


def settings_digest(config: AgentConfig) -> str:
    """Return a digest of an agent's settings; of a pretrained actor its content counts, not its place."""
    own = {name: value for name, value in asdict(config).items() if name != "pretrained"}
    actor = b"" if config.pretrained is None else Path(config.pretrained).expanduser().read_bytes()
    return digest(json.dumps(own, sort_keys=True, default=str), actor)


def _old_strategy(path: Path) -> Strategy | None:
    """Read the strategy of an earlier search; a damaged one is set aside, as this search makes it again."""
    try:
        return Strategy.load(path) if path.exists() else None
    except FileError as error:
        set_aside(path, error)
        return None
