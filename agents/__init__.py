"""Searchers over episodes of a Gymnasium environment with a one-dimensional action in [0, 1].

Every agent is ``(env, episodes, seed, on_episode) -> SearchResult`` and is counted in episodes.
"""

from agents.baselines import fixed_search, random_search
from agents.ddpg import DDPGSettings, ddpg_search
from agents.evolution import EvolutionSettings, evolution_search
from agents.protocol import Agent, Episode, OnEpisode, SearchResult

__all__ = [
    "Agent",
    "DDPGSettings",
    "Episode",
    "EvolutionSettings",
    "OnEpisode",
    "SearchResult",
    "ddpg_search",
    "evolution_search",
    "fixed_search",
    "random_search",
]
