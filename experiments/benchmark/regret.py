"""How far agents stay from the best policy of all: ``python -m experiments.benchmark regret``.

The problem is ResNet-20 on handwritten digits, with seven groups of three widths each (a quarter, a half, all
of the channels). Every policy within the budget is evaluated once, so that the best is known. Then each agent
searches over many seeds. Its regret is the best return of all minus the best return that it found: the mean
over the seeds, with its t interval of 95%.

An agent is named as on the command line of ``amc``, with settings after plus signs:
``ddpg``, ``ddpg+gamma=0``, ``evolution+population=4+sigma=0.1``.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from amc.budget.widths import WidthSpace
from experiments.benchmark.arguments import positive
from experiments.benchmark.problem import FIXED, Problem, agent_config, open_trained
from experiments.config.sections.agents import AgentConfig
from experiments.statistics import mean_of

AGENTS = (
    "uniform", "greedy", "random", "evolution", "tpe", "netadapt", "thompson",
    "ddpg", "ddpg_paper",
)  # fmt: skip
SHARES = (0.25, 0.5, 1.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--agents", nargs="+", default=list(AGENTS))
    parser.add_argument("--seeds", type=positive, default=10)
    parser.add_argument("--episodes", type=positive, default=50)
    parser.add_argument("--macs-ratio", type=float, default=0.6)
    parser.add_argument("--train-epochs", type=positive, default=20)
    parser.add_argument("--threads", type=positive, default=1)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the searches of all agents; see the module's docstring.

    Raises:
        AmcError: An agent's name or the budget is wrong.
    """
    configs = {name: agent_config(name, options.episodes) for name in options.agents}
    with tempfile.TemporaryDirectory() as folder:
        job = open_trained(Path(folder), *_overrides(options))
        problem = Problem(job, _coarse(job.problem.graph.group_names, job.problem.graph.dense_widths))
        returns = np.sort(_all_returns(problem))
        agents = {
            name: _regrets(name, config, problem, returns, options.seeds) for name, config in configs.items()
        }
        dense_top1 = problem.evaluator.dense.top1
        job.problem.release()
    return {
        "policies": len(returns),
        "best_return": float(returns[-1]),
        "median_return": float(np.median(returns)),
        "episodes": options.episodes,
        "seeds": options.seeds,
        "dense_top1": dense_top1,
        "agents": agents,
    }


def _overrides(options: argparse.Namespace) -> list[str]:
    return [
        f"train.epochs={options.train_epochs}",
        f"budget.macs_ratio={options.macs_ratio}",
        f"threads={options.threads}",
        "compressor.prune_coupled=false",
        "compressor.exclude=[layer1.0.conv1,layer1.1.conv1]",
        "reward=agreement",
    ]


def _coarse(names: Sequence[str], dense: Sequence[int]) -> WidthSpace:
    choices = tuple(tuple(max(1, int(share * width)) for share in SHARES) for width in dense)
    return WidthSpace(tuple(names), tuple(dense), choices)


def _all_returns(problem: Problem) -> list[float]:
    """Return the return of every policy within the budget."""
    policies = list(itertools.product(*problem.space.choices))
    fitting = [widths for widths in policies if problem.budget.fits(widths)]
    return [problem.reward(problem.evaluate(widths)) for widths in tqdm(fitting, "policies", disable=None)]


def _regrets(
    name: str, config: AgentConfig, problem: Problem, returns: np.ndarray, seeds: int
) -> dict[str, Any]:
    drawn = range(1 if config.name in FIXED else seeds)
    trials = [problem.try_agent(config, seed) for seed in tqdm(drawn, desc=name, disable=None)]
    found = [trial.values[-1] for trial in trials]
    regret, *interval = mean_of([returns[-1] - value for value in found]).listed()
    better = [float((returns > value).mean()) for value in found]
    return {
        "regret": regret,
        "regret_interval": interval,
        "share_of_policies_that_are_better": float(np.mean(better)),
        "optimum_found": sum(value == float(returns[-1]) for value in found),
        "searches": len(found),
        "different_networks": float(np.mean([trial.networks for trial in trials])),
    }
