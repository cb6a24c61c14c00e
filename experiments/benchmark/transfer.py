"""What searches of other networks are worth: ``python -m experiments.benchmark transfer RUN RUN RUN ...``.

Each RUN is the folder of a finished search with error curves and a budget. Each network in turn is left out:
an actor is trained on what the others have learned (``agents.transfer``), and the network is searched with it
and without it. The result is the return of the greedy allocation, of the actor's own one (no evaluation
learned from), and the best after some evaluations (the mean over the seeds with its t interval of 95%).
Evaluations are remembered in the run folders.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from agents.transfer import actor_bytes, load_experience, train_actor
from amc.errors import FileError, SettingError
from experiments.benchmark.arguments import positive
from experiments.benchmark.problem import Problem, agent_config, open_job
from experiments.command.memory.remembered import remembered_overrides
from experiments.run.folder import RunFolder
from experiments.run.run import Run
from experiments.statistics import difference_of, mean_of
from experiments.words.comparison import names_of

LEAST_RUNS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--agent", default="ddpg", help="the agent that searches: ddpg or thompson")
    parser.add_argument(
        "--episodes", type=positive, default=21, help="evaluations of a search, the start included"
    )
    parser.add_argument("--seeds", type=positive, default=3)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Leave out one network after the other; see the module's docstring.

    Raises:
        AmcError: A folder is no finished search or is named twice, or there are too few.
    """
    if len(options.runs) < LEAST_RUNS:
        raise SettingError(f"{len(options.runs)} runs are given; expected at least {LEAST_RUNS}")
    names = names_of(options.runs)
    try:
        known = [load_experience(RunFolder(folder).experience) for folder in options.runs]
    except ValueError as error:
        raise FileError(str(error)) from error
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for place, own in enumerate(tqdm(options.runs, "networks", disable=None)):
            others = [experience for i, (experience, _) in enumerate(known) if i != place]
            actor = Path(folder) / f"{place}.safetensors"
            actor.write_bytes(actor_bytes(train_actor(others, seed=0), []))
            found[f"{names[place]} ({known[place][1]})"] = _left_out(_opened(own), actor, options)
    gains = [facts["zero_shot"] - facts["greedy"] for facts in found.values()]
    return {
        "agent": options.agent,
        "episodes": options.episodes,
        "seeds": options.seeds,
        "networks": found,
        "zero_shot_less_greedy": gains,
        "zero_shot_better_on": sum(gain > 0 for gain in gains),
    }


def _opened(folder: Path) -> Run:
    return open_job(folder, *remembered_overrides(folder))


def _left_out(job: Run, actor: Path, options: argparse.Namespace) -> dict[str, Any]:
    problem = Problem(job, job.space)
    plain = agent_config(options.agent, options.episodes)
    taught = replace(plain, pretrained=str(actor))

    def best(config: Any) -> list[float]:
        return [problem.try_agent(config, seed).values[-1] for seed in range(options.seeds)]

    start = problem.try_agent(replace(plain, episodes=1), 0).values[0]
    zero_shot = problem.try_agent(replace(taught, episodes=1), 0).values[0]
    without, with_actor = best(plain), best(taught)
    job.problem.release()
    return {
        "greedy": start,
        "zero_shot": zero_shot,
        "searched": mean_of(without).listed(),
        "searched_with_actor": mean_of(with_actor).listed(),
        "gain": difference_of(with_actor, without).listed(),
    }
