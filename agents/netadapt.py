"""NetAdapt (Yang et al., ECCV 2018, algorithm 1): shrink one group at a time, judged at every step.

What a group is, and how it is shrunk, is left to a function: nothing here knows of channels. The paper's
short-term fine-tuning of every judged network is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gymnasium as gym

from agents.baselines import carry_out
from agents.protocol import Episode, OnEpisode, SearchResult, better, rollouts

Actions = tuple[float, ...]

Propose = Callable[[Actions, float], Sequence[Actions]]
"""(executed actions, share of the dense cost) -> actions of networks within that share, the most promising
first; the given actions alone if they are within it already. The share is never below the budget's."""


@dataclass(frozen=True)
class NetAdaptSettings:
    """Hyper-parameters; 0 chooses from the number of episodes.

    Attributes:
        steps: steps from the dense network to the budget; each lowers the cost by the same factor.
        candidates: networks that are judged at a step, at most.
        guide: an allocation within the budget that is judged before all others, so that the result is never
            worse than it and a search that is stopped early has one; empty for none.
    """

    steps: int = 0
    candidates: int = 0
    guide: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values that no search can use.

        Raises:
            ValueError: names the setting, what it is and what is expected.
        """
        for name in ("steps", "candidates"):
            if getattr(self, name) < 0:
                raise ValueError(f"agent.{name} is {getattr(self, name)}; expected 0 (automatic) or more")

    def check(self, episodes: int) -> None:
        """Refuse more networks than there are episodes.

        Raises:
            ValueError: names the settings and how many episodes they take.
        """
        needed = max(self.steps, 1) * max(self.candidates, 1)
        if needed > episodes:
            raise ValueError(
                f"agent.episodes is {episodes}, but agent.steps={self.steps} and "
                f"agent.candidates={self.candidates} take {needed}; expected no more than the episodes"
            )

    def steps_for(self, episodes: int, groups: int, target: float) -> int:
        """Return the number of steps, at most ``episodes``.

        Automatic steps take off half of what an average group costs, which a single group can give; they
        become finer where there are episodes enough to judge every group at each.
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

    At every step the most promising networks of ``propose`` are judged, and the next step starts from the one
    of the highest return. All steps but the last are over the budget on purpose: they are run on ``relaxed``
    and never kept. Episodes are shared out evenly over the steps that are left; the search ends with the last
    step, though episodes be left over. The number of environments changes nothing. A single episode has no
    room for the guide.

    Args:
        relaxed: as ``envs``, without the cut that keeps every episode within the budget.
        propose: the networks of a step.
        target: share of the dense cost that the budget allows, in (0, 1].

    Raises:
        ValueError: more steps or candidates are asked for than there are episodes.
    """
    settings.check(episodes)
    guides = [settings.guide] if settings.guide and episodes > 1 else []
    steps = settings.steps_for(episodes - len(guides), episode_length, target)
    found = _judge(envs, guides, 0, "search", on_episode)
    count = len(found)
    current: Actions = (1.0,) * episode_length
    for step in range(1, steps):
        candidates = list(propose(current, target ** (step / steps)))
        if current in candidates:  # rounding has carried an earlier step below this one's target
            continue
        short = candidates[: _share(episodes - count, steps - step + 1, settings)]
        judged = _judge(relaxed, short, count, "relaxed", on_episode)
        count += len(judged)
        current = max(judged, key=lambda episode: episode.value).executed
    short = list(propose(current, target))[: _share(episodes - count, 1, settings)]
    found += _judge(envs, short, count, "search", on_episode)
    best: Episode | None = None
    for episode in found:
        best = better(best, episode)
    assert best is not None
    return SearchResult("netadapt", count + len(short), best)


def _share(episodes: int, steps: int, settings: NetAdaptSettings) -> int:
    """Return how many networks a step may judge when so many episodes and steps are left."""
    share = episodes // steps
    return min(share, settings.candidates or share)


def _judge(
    envs: Sequence[gym.Env], candidates: Sequence[Actions], first: int, phase: str, on_episode: OnEpisode
) -> list[Episode]:
    """Run the episode of every candidate, as many at once as there are environments."""
    judged: list[Episode] = []
    for start in range(0, len(candidates), len(envs)):
        policies = [carry_out(actions) for actions in candidates[start : start + len(envs)]]
        for episode in rollouts(envs, policies, first + start, phase):
            on_episode(episode)
            judged.append(episode)
    return judged
