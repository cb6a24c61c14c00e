"""Agents that search over episodes of Gymnasium environments with a one-dimensional action in [0, 1].

Every agent is a function ``(envs, episodes, seed, on_episode) -> SearchResult`` with its settings bound: see
``agents.protocol.Agent``. The environments are identical and are stepped at the same time.
"""

from typing import TYPE_CHECKING, Any

from agents.baselines import fixed_search, random_search
from agents.best_start import search_from_best
from agents.evolution import EvolutionSettings, evolution_search
from agents.netadapt import NetAdaptSettings, netadapt_search
from agents.offpolicy.settings import DDPGSettings
from agents.protocol import Agent, Episode, OnEpisode, SearchEnded, SearchResult, run_search
from agents.thompson import ThompsonSettings, thompson_search
from agents.tpe import TPESettings, import_optuna, tpe_search

if TYPE_CHECKING:
    from agents.offpolicy.ddpg import ddpg_search

__all__ = [
    "Agent",
    "DDPGSettings",
    "Episode",
    "EvolutionSettings",
    "NetAdaptSettings",
    "OnEpisode",
    "SearchEnded",
    "SearchResult",
    "TPESettings",
    "ThompsonSettings",
    "ddpg_search",
    "evolution_search",
    "fixed_search",
    "import_optuna",
    "netadapt_search",
    "random_search",
    "run_search",
    "search_from_best",
    "thompson_search",
    "tpe_search",
]


def __getattr__(name: str) -> Any:
    """Import stable-baselines3, and torch with it, only where DDPG is run."""
    if name == "ddpg_search":
        from agents.offpolicy.ddpg import ddpg_search

        return ddpg_search
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
