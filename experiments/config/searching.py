"""The search of a configuration, by an agent of this package or of the user's own."""

from __future__ import annotations

from functools import partial

from agents import Episode, OnEpisode, SearchEnded, SearchResult, run_search
from amc.dotted import own_part
from amc.errors import AmcError
from experiments.config.agents import make_agent
from experiments.config.arena import Arena
from experiments.config.sections.agents import AgentConfig


def searched(
    config: AgentConfig, arena: Arena, seed: int, watch: OnEpisode, *, at_once: int = 1
) -> SearchResult:
    """Run an agent, which may be the user's own; ``check_agent`` has been called.

    Args:
        config: the section of the agent.
        arena: the problem.
        seed: seed of all random draws of the agent.
        watch: called after every episode; it may end the search (``SearchEnded``).
        at_once: number of environments that are stepped at the same time.

    Raises:
        SettingError: a setting of the agent is missing or impossible.
        AmcError: the agent fails, or returns something else than its best episode; or the search was ended
            before an episode that may win.
    """
    name = config.name
    search = partial(make_agent(config, arena, seed), at_once)
    reported: list[Episode] = []

    def watched(episode: Episode) -> None:
        reported.append(episode)
        watch(episode)

    with own_part("agent", name):
        try:
            result: object = run_search(search, watched, name=name)
        except SearchEnded as error:
            raise AmcError(
                f"the search was ended after {len(reported)} episodes, none of which may win, as "
                f"agent={name} exceeds the budget on purpose in its first ones; end it later, or use "
                "agent.guide=greedy"
            ) from error
        if not isinstance(result, SearchResult):
            raise AmcError(f"agent {name!r} returned {type(result).__name__}; expected agents.SearchResult")
        if not any(result.best == episode and episode.eligible for episode in reported):
            raise AmcError(
                f"agent {name!r} returned a best episode that it has not given to on_episode, or a relaxed "
                "one; expected one of those that may win"
            )
        return result
