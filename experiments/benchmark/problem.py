"""A search problem that many agents are tried on; evaluations are remembered across searches."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from agents import Episode
from amc.budget.budget import KINDS, get_fit
from amc.budget.widths import WidthSpace
from amc.errors import SettingError
from amc.files import atomic_write_json
from amc.importance.global_ranking import global_scores
from amc.reading import read_json
from amc.result import Evaluation
from envs import get_reward
from envs.observation import group_features
from experiments.command import model_source
from experiments.command.messages import message
from experiments.command.overrides import key_of
from experiments.config import schema
from experiments.config.agents import ALLOCATIONS, check_agent, check_search, make_agent, refuse_unseen
from experiments.config.arena import Arena
from experiments.config.sections.agents import AgentConfig
from experiments.run.run import Run, open_run, set_up_process
from experiments.run.values import check_values
from experiments.stages.pipeline import run_stage

FIXED = (*ALLOCATIONS, "netadapt")
"""Agents that draw nothing at random."""
_OF_DENSE = ("train", "model", "data", "experiment=", "seed=")
"""How the overrides begin that decide what the dense network is."""


def config_of(*overrides: str) -> schema.Config:
    """Compose a configuration as ``amc`` does.

    Raises:
        SettingError: an override is wrong.
    """
    schema.register()
    model_source.register()
    try:
        with initialize_config_module("conf", version_base="1.3"):
            found = OmegaConf.to_object(compose("config", overrides=[*overrides, "run_dir=none"]))
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingError(message(error) or str(error)) from error
    assert isinstance(found, schema.Config)
    return found


def refuse_listed(config: schema.Config) -> None:
    """Refuse lists of budgets: a benchmark has one budget.

    Raises:
        SettingError: there is one.
    """
    for name in (f"{kind}_ratio" for kind in KINDS):
        if found := getattr(config.budget, f"{name}s"):
            shown = ",".join(f"{ratio:g}" for ratio in found)
            raise SettingError(
                f"budget.{name}s=[{shown}] is a list of budgets, but a benchmark has one: give "
                f"budget.{name}={found[0]:g}, and a call for each"
            )


def refuse_words(overrides: Iterable[str], keys: Collection[str], instead: str) -> None:
    """Refuse overrides that a benchmark would ignore.

    Args:
        overrides: of the command line.
        keys: settings; the name of a section stands for all of its settings.
        instead: what to do about it.

    Raises:
        SettingError: there is one.
    """
    for word in overrides:
        key = key_of(word)
        if any(key == own or key.startswith(f"{own}.") for own in keys):
            raise SettingError(f"{word} has no effect here: {instead}")


def open_job(folder: Path, *overrides: str) -> Run:
    """Open a job as ``amc`` does: its values are checked, and this process gets its threads and its seed.

    Raises:
        AmcError: an override is wrong.
    """
    config = config_of(*overrides)
    refuse_listed(config)
    check_values(config, overrides)
    set_up_process(config)
    return open_run(config, folder)


def open_trained(folder: Path, *overrides: str) -> Run:
    """Open a job by ``open_job``, and train its dense network if it has none.

    What the training prints goes to stderr: stdout is for the JSON.

    Raises:
        AmcError: an override is wrong, or ``folder`` holds a network that was trained under others.
    """
    job = open_job(folder, *overrides)
    decisive = sorted(word for word in overrides if word.startswith(_OF_DENSE))
    note = folder / "trained.json"
    if not job.problem.weights.exist:
        with contextlib.redirect_stdout(sys.stderr):
            run_stage(job, "train")
        atomic_write_json(note, decisive)
    elif note.exists() and not job.problem.weights.given:
        known = read_json(note, [str], "remove the folder")
        if known != decisive:
            raise SettingError(
                f"{folder} holds a network trained with {' '.join(known) or 'the defaults'}, got "
                f"{' '.join(decisive) or 'the defaults'}: give another folder"
            )
    return job


def agent_config(name: str, episodes: int) -> AgentConfig:
    """Return the configuration of an agent named with its settings after plus signs: ``ddpg+gamma=0``.

    Raises:
        AmcError: A setting is impossible, or it is the number of episodes, which all agents share.
    """
    agent, *settings = name.split("+")
    if any(setting.startswith("episodes=") for setting in settings):
        raise SettingError(f"{name}: all agents have the same number of episodes: give --episodes N")
    found = config_of(f"agent={agent}", *(f"agent.{setting}" for setting in settings)).agent
    config = replace(found, episodes=episodes)
    check_agent(config, "obs")
    refuse_unseen(config, "this benchmark")
    return config


def check_agents(agents: Iterable[AgentConfig], overrides: Sequence[str]) -> None:
    """Refuse agents that cannot search the problem of overrides, before it is made.

    Raises:
        AmcError: there is one, or an override is wrong.
    """
    problem = config_of(*overrides)
    for config in agents:
        check_search(config, get_reward(problem.reward), get_fit(problem.budget.fit))


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

    def try_agent(self, config: AgentConfig, seed: int) -> Trial:
        """Run one search.

        Raises:
            AmcError: The agent does not fit the problem.
        """
        check_search(config, self.reward, self.budget.fit)
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
            dense=lambda: self.evaluator.dense,
            scores=self._scores,
        )
        best = make_agent(config, arena, seed)(1, on_episode).best
        assert best.value == values[-1]
        winner = best.info["evaluation"].widths
        return Trial(tuple(values), len(self._seen), winner, tuple(policy))
