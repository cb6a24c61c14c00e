"""What a run folder tells about the run's dense network and strategy, and what is about others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amc.errors import AmcError, FileError
from amc.notes import note_once
from amc.reading import set_aside
from amc.strategy import Strategy
from experiments.config import stages
from experiments.run.episodes import read_episodes
from experiments.run.folder import MADE_OF, MADE_OF_PRUNED, RunFolder
from experiments.run.problem.problem import Problem


class Records:
    """The records and the search of a run folder, less what is about something else than the run is.

    A dense network may have been trained anew, and the strategy or the size of the images may have changed.
    What was made of something else is not shown beside this run's results.

    Args:
        folder: the run folder.
        problem: the dense network and the data of the run.
    """

    def __init__(self, folder: RunFolder, problem: Problem) -> None:
        self._folder = folder
        self._problem = problem

    def read(self, stage: str) -> dict[str, Any] | None:
        """Return the facts that a stage found about this run's dense network and strategy, or None.

        A damaged record is set aside. A line is printed about one that is about something else.

        Raises:
            FileError: a damaged record cannot be set aside.
        """
        try:
            facts = self._folder.recorded(stage)
        except FileError as error:
            set_aside(self._folder.record_of(stage), error)
            return None
        if facts is None or self.fits(facts):
            return facts
        note_once(
            f"{self._folder.record_of(stage)} is left out: it is about another dense network, strategy or "
            f"size of images; run stages=[{stage}] again"
        )
        return None

    def is_outdated(self, stage: str) -> bool:
        """Whether a stage has a record that is about another dense network, strategy or size of images."""
        facts = self._undamaged(stage)
        return facts is not None and not self.fits(facts)

    def is_of_this_strategy(self, stage: str) -> bool:
        """Whether a stage has a record that tells that it is about this run's strategy and dense network.

        Records of earlier versions tell no strategy.
        """
        facts = self._undamaged(stage) or {}
        made_of = facts.get(MADE_OF)
        return isinstance(made_of, dict) and "strategy" in made_of and self.fits(facts)

    def _undamaged(self, stage: str) -> dict[str, Any] | None:
        try:
            return self._folder.recorded(stage)
        except FileError:  # which is told when the record is read
            return None

    def fits(self, facts: Mapping[str, Any]) -> bool:
        """Whether a record is about this run's dense network, strategy and size of images.

        Records of earlier versions do not say all of it, and are taken.
        """
        made_of = facts.get(MADE_OF)
        if not isinstance(made_of, dict):
            return True
        dense, strategy = made_of.get("dense"), made_of.get("strategy")
        if strategy is not None and strategy != self._folder.strategy_digest():
            return False
        if made_of.get("input", self._input) != self._input:
            return False
        return dense is None or not self._problem.weights.exist or dense == self._problem.dense_digest

    def made_of(self, stage: str) -> dict[str, str | None]:
        """Return what the facts of a stage are about: digests, and the size of the images.

        Weights have no size of images, so that ``train`` has none either.
        """
        found: dict[str, str | None] = {} if stage == "train" else {"input": self._input}
        if stage == "export":  # which does not load the dense network
            known = (self._folder.recorded("prune") or {}).get(MADE_OF)
            return {**known, **found} if isinstance(known, dict) else found
        if stage in ("train", *stages.WITH_DENSE):
            found["dense"] = self._problem.dense_digest
        if stage in ("prune", *MADE_OF_PRUNED):
            found["strategy"] = self._folder.strategy_digest()
        return found

    @property
    def _input(self) -> str:
        """Channels, height and width of the images."""
        return "x".join(map(str, self._problem.splits.input_shape))

    @property
    def has_pruned(self) -> bool:
        """Whether there is a pruned network of this run's dense network, strategy and size of images."""
        if not self._folder.pruned.exists():
            return False
        return self.read("prune") is not None or not self._folder.record_of("prune").exists()

    def require_pruned(self, weights: Path) -> None:
        """Make sure that a file of weights is of this run's dense network and strategy.

        Raises:
            FileError: it is missing, or of another network.
        """
        self._folder.require(weights, "prune")
        if not self.has_pruned:
            raise FileError(
                f"{weights} was cut from another dense network, at other widths, or for images of another "
                "size: run stages=[prune] again"
            )

    def episodes(self) -> list[dict[str, Any]]:
        """Return the episodes of this run's search, also of one that was stopped.

        Those of another dense network are none: ``search.jsonl`` outlives a training and a schedule.

        Raises:
            FileError: ``search.jsonl`` is damaged.
        """
        return read_episodes(self._folder.search) if self._has_episodes() else []

    def require_episodes(self) -> list[dict[str, Any]]:
        """Return the episodes of this run's search.

        Raises:
            FileError: there is no search of this run's dense network, or it is damaged.
            AmcError: it was for other channel groups.
        """
        log = self._folder.require(self._folder.search, "search")
        if not self._has_episodes():
            raise FileError(
                f"{log} is of another dense network or size of images; expected a search of this run's: run "
                "stages=[search] again"
            )
        episodes = read_episodes(log)
        self.require_groups(episodes)
        return episodes

    def require_groups(self, episodes: Sequence[Mapping[str, Any]]) -> None:
        """Make sure that episodes of the search are about the channel groups that the run has now.

        Raises:
            AmcError: they are about others; of records of earlier versions only the number is known.
        """
        if not episodes:
            return
        names, count = list(self._problem.graph.group_names), len(episodes[0]["widths"])
        known: list[str] = (self.read("search") or {}).get("group_names", names)
        if count != len(names):
            told = f"{count} channel groups, the run has {len(names)}"
        elif known != names:
            told = f"other channel groups ({', '.join(sorted({*known} - {*names}))}) than the run has now"
        else:
            return
        raise AmcError(
            f"{self._folder.search} is about {told}: were settings changed since? Run stages=[search] again"
        )

    def _has_episodes(self) -> bool:
        """Whether there is a search of this run's dense network; one that was stopped has no record."""
        if not self._folder.search.exists():
            return False
        if self._folder.record_of("search").exists():
            return self.read("search") is not None
        if not self._folder.strategy.exists():
            return False
        found = Strategy.load(self._folder.strategy).provenance.get("fingerprint")
        return bool(found == self._problem.fingerprint)
