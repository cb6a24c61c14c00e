"""NetAdapt (Yang et al., ECCV 2018, algorithm 1): shrink one group at a time and evaluate every step.

A function says how a group is shrunk, so nothing here knows of channels. The paper's short-term fine-tuning
of every evaluated network is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import gymnasium as gym

from agents.baselines import carry_out
from agents.checks import at_least, validate
from agents.protocol import Episode, OnEpisode, SearchResult, better, rollouts

Actions = tuple[float, ...]

Propose = Callable[[Actions, float], Sequence[Actions]]
"""(executed actions, progress in (0, 1]) -> actions of networks within the budget at that progress, the most
promising first, or the given actions alone if they are within it already. The limits fall, by the same factor
for the same progress, from the dense cost at 0 to the budget at 1."""


@dataclass(frozen=True)
class NetAdaptSettings:
    """Hyper-parameters; 0 means automatic, from the number of episodes.

    Attributes:
        steps: steps from the dense network to the budget; each lowers the cost by the same factor.
        candidates: largest number of networks that are evaluated at a step.
        guide: an allocation within the budget, empty for none. It is evaluated first: the result is never
            worse, and a search that is stopped early has a result.

    Raises:
        ValueError: names an impossible setting, its value and what is expected.
    """

    steps: int = field(default=0, metadata=at_least(0))
    candidates: int = field(default=0, metadata=at_least(0))
    guide: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        validate(self)

    def check(self, episodes: int) -> None:
        """Refuse settings that need more episodes than there are.

        Raises:
            ValueError: names the settings and how many episodes they need.
        """
        guide = int(bool(self.guide) and episodes > 1)
        needed = max(self.steps, 1) * max(self.candidates, 1) + guide
        if needed > episodes:
            told = " with the guide" if guide else ""
            raise ValueError(
                f"agent.episodes is {episodes}, but agent.steps={self.steps} and "
                f"agent.candidates={self.candidates} need {needed}{told}; expected at most as many as the "
                "episodes"
            )

    def steps_for(self, episodes: int, groups: int, target: float) -> int:
        """Return the number of steps, at most ``episodes``.

        An automatic step removes half the cost of an average group, which a single group can give. Steps
        are finer if the episodes suffice to evaluate every group at each of them.

        Args:
            episodes: episodes that are left.
            groups: number of groups.
            target: share of the dense cost that the budget allows, in (0, 1]; the smallest of several.
        """
        if self.steps:
            return min(self.steps, episodes)
        if self.candidates:
            return max(episodes // self.candidates, 1)
        needed = math.ceil(2 * groups * math.log(1 / target))
        return min(episodes, max(needed, episodes // groups, 1))


def netadapt_search(
    envs: Sequence[gym.Env],
    episodes: int,
    seed: int,
    on_episode: OnEpisode,
    *,
    relaxed: Sequence[gym.Env],
    propose: Propose,
    episode_length: int,
    target: float,
    settings: NetAdaptSettings,
) -> SearchResult:
    """Shrink the dense network step by step; see ``agents.protocol.Agent``. Nothing is random.

    Every step evaluates the most promising networks of ``propose``; the next step starts from the one of
    the highest return. All steps but the last exceed the budget on purpose: they run on ``relaxed`` and are
    never kept. Episodes are distributed evenly over the remaining steps. The search ends with the last
    step, even if episodes are left over. The number of environments does not change the result. The guide
    is skipped if there is only one episode.

    Args:
        relaxed: as many environments as ``envs``, which do not enforce the budget.
        propose: gives the networks of a step.
        episode_length: steps of an episode: the number of groups.
        target: share of the dense cost that the budget allows, in (0, 1]; the smallest of several.
        settings: the hyper-parameters.

    Raises:
        ValueError: steps times candidates exceed the episodes.
    """
    settings.check(episodes)
    guides = [settings.guide] if settings.guide and episodes > 1 else []
    steps = settings.steps_for(episodes - len(guides), episode_length, target)
    found = _evaluate(envs, guides, 0, "search", on_episode)
    count = len(found)
    current: Actions = (1.0,) * episode_length
    for step in range(1, steps):
        candidates = list(propose(current, step / steps))
        if current in candidates:  # rounding took an earlier step below this step's target
            continue
        short = candidates[: _share(episodes - count, steps - step + 1, settings)]
        evaluated = _evaluate(relaxed, short, count, "relaxed", on_episode)
        count += len(evaluated)
        current = max(evaluated, key=lambda episode: episode.value).executed
    short = list(propose(current, 1.0))[: _share(episodes - count, 1, settings)]
    found += _evaluate(envs, short, count, "search", on_episode)
    best: Episode | None = None
    for episode in found:
        best = better(best, episode)
    assert best is not None
    return SearchResult("netadapt", count + len(short), best)


def _share(episodes: int, steps: int, settings: NetAdaptSettings) -> int:
    """Return how many networks a step may evaluate when ``episodes`` and ``steps`` are left."""
    share = episodes // steps
    return min(share, settings.candidates or share)


def _evaluate(
    envs: Sequence[gym.Env], candidates: Sequence[Actions], first: int, phase: str, on_episode: OnEpisode
) -> list[Episode]:
    """Run the episode of every candidate, as many at once as there are environments."""
    evaluated: list[Episode] = []
    for start in range(0, len(candidates), len(envs)):
        policies = [carry_out(actions) for actions in candidates[start : start + len(envs)]]
        for episode in rollouts(envs, policies, first + start, phase):
            on_episode(episode)
            evaluated.append(episode)
    return evaluated
