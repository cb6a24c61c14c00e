"""Agents on one real problem, over many seeds: ``python -m experiments.benchmark agents OVERRIDE ...``.

The overrides describe the problem as they do for ``amc``, for example ``experiment=resnet20_cifar10
data.root=DIR model.checkpoint=FILE``. All agents share the evaluations, so a search costs only the networks
that no earlier search has met. The result is the best return after a number of episodes, and that of the
policy without noise for an agent that has one. With ``--test`` the winners are judged on the test images too,
with the weights that the search gave them.

An agent is named as on the command line of ``amc``, with settings after plus signs: ``ddpg``,
``ddpg+gamma=1``; the section ``agent`` of a recipe is not used. Figures are means over the seeds with t
intervals of 95%, which one search does not have.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from amc.scoring.scores import top1
from experiments.benchmark.arguments import positive
from experiments.benchmark.problem import (
    FIXED,
    Problem,
    Trial,
    agent_config,
    check_agents,
    open_trained,
    refuse_words,
)
from experiments.run.run import Run
from experiments.statistics import Mean, difference_of, mean_of

AGENTS = ("ddpg", "greedy", "uniform", "random", "evolution")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("overrides", nargs="*", help="of the configuration")
    parser.add_argument(
        "--agents", nargs="+", default=list(AGENTS), help="others are compared with the first"
    )
    parser.add_argument("--seeds", type=positive, default=10)
    parser.add_argument("--episodes", type=positive, default=50)
    parser.add_argument("--folder", help="keep evaluations here, for further calls")
    parser.add_argument("--test", action="store_true", help="judge the winners on the test images")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the searches of all agents; see the module's docstring.

    Raises:
        AmcError: The overrides or an agent's name are wrong.
    """
    refuse_words(options.overrides, ["agent"], "give --agents NAME+KEY=VALUE, and --episodes N")
    configs = {name: agent_config(name, options.episodes) for name in options.agents}
    check_agents(configs.values(), options.overrides)
    with tempfile.TemporaryDirectory() as folder:
        job = open_trained(Path(options.folder or folder), *options.overrides)
        problem = Problem(job, job.space)
        trials: dict[str, list[Trial]] = {}
        for name, config in configs.items():
            seeds = 1 if config.name in FIXED else options.seeds
            bar = tqdm(range(seeds), desc=name, disable=None)
            trials[name] = [problem.try_agent(config, seed) for seed in bar]
        dense = problem.evaluator.dense.top1
        tested = _tested(job, trials) if options.test else {}
        job.problem.release()
    first = trials[options.agents[0]]
    return {
        "overrides": options.overrides,
        "episodes": options.episodes,
        "seeds": options.seeds,
        "dense_top1": dense,
        "agents": {
            name: {**_summary(own, first), **_summary_of_test(name, tested, options.agents[0])}
            for name, own in trials.items()
        },
    }


def _tested(job: Run, trials: Mapping[str, Sequence[Trial]]) -> dict[str, list[float]]:
    """Return the test accuracies of every agent's winners, in percent."""
    evaluator, test = job.problem.evaluator(), job.problem.splits.test()
    images = test.images.to(evaluator.images)
    known: dict[tuple[int, ...], float] = {}

    def judge(widths: tuple[int, ...]) -> float:
        if widths not in known:
            known[widths] = top1(evaluator.outputs(widths, images), test.labels)
        return known[widths]

    return {name: [judge(trial.winner) for trial in own] for name, own in trials.items()}


def _summary_of_test(name: str, tested: Mapping[str, Sequence[float]], first: str) -> dict[str, Any]:
    if not tested:
        return {}
    facts: dict[str, Any] = {"test_top1": mean_of(tested[name]).listed(), "tested": tested[name]}
    if name != first:
        facts["test_less_first"] = _less(tested[name], tested[first]).listed()
    return facts


def _less(values: Sequence[float], others: Sequence[float]) -> Mean:
    """Return one agent's mean less another's; that of an agent that draws nothing at random is exact."""
    if min(len(values), len(others)) == 1:
        return mean_of([value - other for value in values for other in others])
    return difference_of(values, others)


def _summary(trials: Sequence[Trial], others: Sequence[Trial]) -> dict[str, Any]:
    last = [trial.values[-1] for trial in trials]
    value, *interval = mean_of(last).listed()
    facts: dict[str, Any] = {
        "best_return": value,
        "interval": interval,
        "different_networks": sum(trial.networks for trial in trials) / len(trials),
        "searches": len(trials),
    }
    episodes = min(len(trial.values) for trial in trials)
    facts["after"] = {
        str(count): mean_of([trial.values[count - 1] for trial in trials]).value
        for count in (10, 20, 30, 50, 100, 200, 400)
        if count < episodes
    }
    if all(trial.policy and trial.policy[-1] is not None for trial in trials):
        facts["policy_return"] = [trial.policy[-1] for trial in trials]
    if trials is not others:
        facts["less_first"] = _less(last, [trial.values[-1] for trial in others]).listed()
    return facts
