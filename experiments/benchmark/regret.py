"""How far agents stay from the best policy there is: ``python -m experiments.benchmark regret``.

ResNet-20 on handwritten digits, seven groups with three widths each (a quarter, a half, all of the channels):
every policy within the budget is evaluated once, so that the best is known. Then each agent searches, over
many seeds, and its regret is the best return of all minus the best return that it found.

An agent is named as on the command line of ``amc``, settings after a plus sign:
``ddpg``, ``ddpg+gamma=0``, ``evolution+population=4+sigma=0.1``.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from tqdm import tqdm

from agents import Episode
from amc.budget import WidthSpace
from amc.memo import Evaluation
from amc.ranking import global_scores
from envs import ChannelPruningEnv
from envs.observation import group_features
from experiments import model_source, schema
from experiments.agents import ALLOCATIONS, check_agent, make_agent
from experiments.run import Run
from experiments.stages import run_stage
from experiments.statistics import bootstrap

AGENTS = ("uniform", "greedy", "random", "evolution", "tpe", "netadapt", "ddpg", "ddpg_paper", "td3", "sac")
SHARES = (0.25, 0.5, 1.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--agents", nargs="+", default=list(AGENTS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--macs-ratio", type=float, default=0.6)
    parser.add_argument("--train-epochs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; see the module's docstring."""
    with tempfile.TemporaryDirectory() as folder:
        job = _job(Path(folder), options)
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the JSON
            run_stage(job, "train")
        problem = _Problem(job)
        returns = np.sort(problem.all_returns())
        agents = {name: _regrets(name, problem, returns, options) for name in options.agents}
        dense_top1 = problem.compressor.dense.top1
        job.release()
    return {
        "policies": len(returns),
        "best_return": float(returns[-1]),
        "median_return": float(np.median(returns)),
        "episodes": options.episodes,
        "seeds": options.seeds,
        "dense_top1": dense_top1,
        "agents": agents,
    }


def _job(folder: Path, options: argparse.Namespace) -> Run:
    config = _config(
        f"train.epochs={options.train_epochs}",
        f"budget.macs_ratio={options.macs_ratio}",
        f"threads={options.threads}",
        "compressor.prune_coupled=false",
        "compressor.exclude=[layer1.0.conv1,layer1.1.conv1]",
        "reward=agreement",
    )
    return Run(config, folder)


def _config(*overrides: str) -> schema.Config:
    schema.register()
    model_source.register()
    with initialize_config_module("conf", version_base="1.3"):
        found = OmegaConf.to_object(compose("config", overrides=[*overrides, "run_dir=none"]))
    assert isinstance(found, schema.Config)
    return found


def _coarse(names: Sequence[str], dense: Sequence[int]) -> WidthSpace:
    choices = tuple(tuple(max(1, int(share * width)) for share in SHARES) for width in dense)
    return WidthSpace(tuple(names), tuple(dense), choices)


class _Problem:
    """A search problem whose every answer is computed once."""

    def __init__(self, job: Run) -> None:
        self.compressor = job.compressor()
        self.space = _coarse(job.graph.group_names, job.graph.dense_widths)
        self.budget, self.reward = job.budget, job.reward
        self.errors, self.macs = self.compressor.errors, self.compressor.macs
        self.scores = partial(global_scores, job.dense, job.graph, calibration=job.splits.calibration)
        self._features = group_features(job.graph)
        self.seen: set[tuple[int, ...]] = set()

    def all_returns(self) -> list[float]:
        """Evaluate every policy within the budget."""
        policies = list(itertools.product(*self.space.choices))
        fitting = [widths for widths in policies if self.budget.cost(widths) <= self.budget.limit]
        return [self.reward(self.evaluate(widths)) for widths in tqdm(fitting, "policies", disable=None)]

    def evaluate(self, widths: Sequence[int]) -> Evaluation:
        """Look the answer up."""
        self.seen.add(tuple(widths))
        return self.compressor.evaluate(widths)

    def env(self, *, enforced: bool = True) -> ChannelPruningEnv:
        """Make a fresh environment."""
        budget = replace(self.budget, enforced=enforced)
        return ChannelPruningEnv(self, self.space, budget, self.reward, self._features)


def _regrets(
    name: str, problem: _Problem, returns: np.ndarray, options: argparse.Namespace
) -> dict[str, Any]:
    agent, *settings = name.split("+")
    chosen = [f"agent={agent}", *(f"agent.{setting}" for setting in settings)]
    config = replace(_config(*chosen).agent, episodes=options.episodes)
    check_agent(config, "obs")
    found, distinct = [], []
    once = agent in (*ALLOCATIONS, "netadapt")  # nothing in these is random
    for seed in tqdm(range(1 if once else options.seeds), desc=name, disable=None):
        problem.seen.clear()
        values: list[float] = []

        def on_episode(episode: Episode, values: list[float] = values) -> None:
            values.append(episode.value)

        relaxed = partial(problem.env, enforced=False)
        search = make_agent(
            config, problem.space, problem.budget, problem.errors, seed, relaxed, problem.scores
        )
        found.append(search([problem.env()], on_episode).best.value)
        distinct.append(len(problem.seen))
    regret = bootstrap([returns[-1] - value for value in found])
    better = [float((returns > value).mean()) for value in found]
    return {
        "regret": regret.value,
        "regret_interval": [regret.low, regret.high],
        "share_of_policies_that_are_better": float(np.mean(better)),
        "optimum_found": sum(value == float(returns[-1]) for value in found),
        "searches": len(found),
        "different_networks": float(np.mean(distinct)),
    }
