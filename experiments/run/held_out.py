"""Judges the best networks of a search on images that it does not see, and says when to end it."""

from __future__ import annotations

import math
from collections.abc import Callable

from agents import Episode


class HeldOut:
    """Scores every network that is the best of a search so far on unseen images.

    Such networks are few, so the unseen images are hardly adapted to. The scores that a search raises rise
    on its own images in any case; a rise on the unseen ones is real.

    Args:
        score: returns the score of an episode's network on the unseen images.
        patience: episodes within the budget without a better score there after which the search ends; 0 for
            no end.

    Attributes:
        scores: index of an episode -> score of its network on the unseen images.
        best: the episode of the highest such score, the first one on a tie.
    """

    def __init__(self, score: Callable[[Episode], float], patience: int = 0) -> None:
        self._score = score
        self._patience = patience
        self._idle = 0
        self.scores: dict[int, float] = {}
        self.best: Episode | None = None

    @property
    def best_score(self) -> float:
        """The highest score so far, minus infinity before there is one."""
        return -math.inf if self.best is None else self.scores[self.best.index]

    @property
    def enough(self) -> bool:
        """Whether the search should end."""
        return 0 < self._patience <= self._idle

    def watch(self, episode: Episode, improved: bool) -> float | None:
        """Count an episode; score it if it is the best so far (``improved``), else return None.

        Episodes that exceed the budget on purpose do not count, as they cannot improve anything.
        """
        self._idle += episode.eligible
        if not improved:
            return None
        value, before = self._score(episode), self.best_score
        self.scores[episode.index] = value
        if value > before:
            self.best, self._idle = episode, 0
        return value
