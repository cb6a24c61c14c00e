"""A search problem that many agents are tried on; evaluations are remembered across searches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from agents import Episode
from amc.budget.widths import WidthSpace
from amc.importance.global_ranking import global_scores
from amc.result import Evaluation
from envs.observation import group_features
from experiments.command import model_source
from experiments.config import schema
from experiments.config.agents import ALLOCATIONS, check_agent, check_search, make_agent, refuse_unseen
from experiments.config.arena import Arena
from experiments.run.run import Run

FIXED = (*ALLOCATIONS, "netadapt")
"""Agents that draw nothing at random."""


def config_of(*overrides: str) -> schema.Config:
    """Compose a configuration as ``amc`` does."""
    schema.register()
    model_source.register()
    with initialize_config_module("conf", version_base="1.3"):
        found = OmegaConf.to_object(compose("config", overrides=[*overrides, "run_dir=none"]))
    assert isinstance(found, schema.Config)
    return found


def agent_config(name: str, episodes: int) -> schema.AgentConfig:
    """Return the configuration of an agent named with its settings after plus signs: ``ddpg+gamma=0``.

    Raises:
        AmcError: A setting is impossible.
    """
    agent, *settings = name.split("+")
    found = config_of(f"agent={agent}", *(f"agent.{setting}" for setting in settings)).agent
    config = replace(found, episodes=episodes)
    check_agent(config, "obs")
    refuse_unseen(config, "this benchmark")
    return config


@dataclass(frozen=True)
class Trial:
    """The outcome of one search.

    Attributes:
        values: The best return so far, after every episode that may win.
        networks: The number of different networks that were evaluated.
        winner: The widths of the best network.
        policy: The return of the last episode without noise, after every episode; None for an agent that has
            no policy of its own.
    """

    values: tuple[float, ...]
    networks: int
    winner: tuple[int, ...]
    policy: tuple[float | None, ...]


class Problem:
    """A network, its data and a budget, to be searched again and again.

    Args:
        job: Describes them; its dense network exists.
        space: The widths that groups may take.
    """

    def __init__(self, job: Run, space: WidthSpace) -> None:
        self.evaluator = job.problem.evaluator()
        self._curves = job.problem.curves()
        self.space = space
        self.budget, self.reward = job.budget, job.reward
        self.macs = self.evaluator.macs
        self._scores = partial(
            global_scores, job.problem.dense, job.problem.graph, calibration=job.problem.chosen.calibration
        )
        self._features = group_features(job.problem.graph)
        self._seen: set[tuple[int, ...]] = set()

    def evaluate(self, widths: Sequence[int]) -> Evaluation:
        """Return the evaluation of one network, computed the first time."""
        self._seen.add(tuple(widths))
        return self.evaluator.evaluate(widths)

    def try_agent(self, config: schema.AgentConfig, seed: int) -> Trial:
        """Run one search.

        Raises:
            AmcError: The agent does not fit the problem.
        """
        check_search(config, self.reward)
        self._seen.clear()
        values: list[float] = []
        policy: list[float | None] = []

        def on_episode(episode: Episode) -> None:
            if episode.eligible:
                values.append(max(episode.value, values[-1] if values else episode.value))
                policy.append(episode.learning.get("policy_return"))

        arena = Arena(
            self,
            self.space,
            self.budget,
            self.reward,
            self._features,
            curves=self._curves,
            ceiling=lambda: self.reward(self.evaluator.dense),
            scores=self._scores,
        )
        best = make_agent(config, arena, seed)(1, on_episode).best
        assert best.value == values[-1]
        winner = best.info["evaluation"].widths
        return Trial(tuple(values), len(self._seen), winner, tuple(policy))
