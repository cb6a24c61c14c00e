"""Golden traces: the episodes of every agent on a toy network, as they were when they were last written.

A line of ``NAME.jsonl`` is one episode: phase, widths, return. ``python -m tests.golden`` lists the traces
that differ, ``python -m tests.golden --write`` writes them anew. Write them only with a change that is
meant to move results, and say so in the commit.

The toy must not turn a last bit into another width, so that the traces are the same on every x86 machine. The
widths are coarse, and DDPG meets its budget by ``fit="cut"``, which rounds each request by itself: a scaled
request that equals an allowed width sits on the edge of the next.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
import yaml

import conf
from agents import (
    DDPGSettings,
    Episode,
    EvolutionSettings,
    NetAdaptSettings,
    OnEpisode,
    SearchResult,
    ThompsonSettings,
    TPESettings,
    ddpg_search,
    evolution_search,
    netadapt_search,
    random_search,
    search_from_best,
    thompson_search,
    tpe_search,
)
from amc.budget.allocation import one_group_smaller
from amc.budget.budget import Fit
from amc.budget.weighing import greedy_widths
from envs import GroupFeatures, Reward, get_reward
from experiments.config.agents import make_agent
from experiments.config.arena import Arena
from experiments.config.presets import agent_preset
from tests.fakes import fake_problem

FOLDER = Path(__file__).parent
OPTIMUM = (0.9, 0.3, 0.8, 0.4)
GUIDE = (0.75, 0.45, 0.55, 0.65)
GROUPS = len(OPTIMUM)
SEED = 0

_, _, SPACE, BUDGET = fake_problem(OPTIMUM)
STEEPNESS = (1.0, 2.0, 1.5, 0.7)
CURVES = {
    name: [factor * (1 - width / 40) * (1 - width / 40) for width in range(41)]
    for name, factor in zip(SPACE.names, STEEPNESS, strict=True)
}
"""Error curves (41,) of the groups, by width, that differ from the network's true ones."""

Trace = list[list[Any]]


def problems(count: int, *, fit: Fit = "scale", reward: Reward | None = None) -> list[gym.Env]:
    """Return identical toy environments."""
    return [fake_problem(OPTIMUM, fit=fit, reward=reward)[0] for _ in range(count)]


def preset(name: str, guide: Sequence[float] = ()) -> DDPGSettings:
    """Return the settings of ``conf/agent/NAME.yaml``."""
    path = Path(next(iter(conf.__path__))) / "agent" / f"{name}.yaml"
    known = {field.name for field in fields(DDPGSettings)}
    values = {key: value for key, value in yaml.safe_load(path.read_text()).items() if key in known}
    values["hidden"] = tuple(values.get("hidden", DDPGSettings().hidden))
    return DDPGSettings(**(values | {"guide": tuple(guide)}))


def shares(widths: Sequence[int]) -> tuple[float, ...]:
    """Return the preserve ratios of widths."""
    return tuple(width / dense for width, dense in zip(widths, SPACE.dense, strict=True))


def allocate(factors: Sequence[float]) -> tuple[float, ...]:
    """Return the greedy allocation whose error curves are multiplied by ``factors``."""
    scaled = {
        name: [factor * error for error in CURVES[name]]
        for name, factor in zip(SPACE.names, factors, strict=True)
    }
    return shares(greedy_widths(SPACE, BUDGET, scaled))


def propose(actions: Sequence[float], progress: float) -> list[tuple[float, ...]]:
    """Return NetAdapt's networks: those that meet the budget so far by one group alone."""
    widths = [SPACE.nearest(group, action) for group, action in enumerate(actions)]
    limits = BUDGET.eased(progress, SPACE.dense).limits
    return [shares(network) for network in one_group_smaller(SPACE, limits, widths, CURVES)]


def errors(episode: Episode) -> list[float]:
    """Return every group's error at the widths of an episode's network, by its curve."""
    return [CURVES[name][round(40 * own)] for name, own in zip(SPACE.names, episode.network, strict=True)]


def ddpg(settings: DDPGSettings, episodes: int, count: int, on_episode: OnEpisode) -> SearchResult:
    """Run DDPG on ``count`` environments."""
    envs = problems(count, fit="cut")
    return ddpg_search(envs, episodes, SEED, on_episode, settings=settings, episode_length=GROUPS)


def evolve(guide: tuple[float, ...]) -> Callable[..., SearchResult]:
    """Return the evolution that starts from a guide."""
    return partial(evolution_search, settings=EvolutionSettings(guide=guide))


def netadapt(on_episode: OnEpisode) -> SearchResult:
    """Run NetAdapt; its relaxed environments enforce no budget."""
    return netadapt_search(
        problems(1),
        20,
        SEED,
        on_episode,
        relaxed=problems(1, reward=replace(get_reward("accuracy"), enforces_budget=False)),
        propose=propose,
        episode_length=GROUPS,
        target=BUDGET.leading.ratio,
        settings=NetAdaptSettings(guide=allocate([1.0] * GROUPS)),
    )


def thompson(on_episode: OnEpisode) -> SearchResult:
    """Run Thompson sampling on error curves that are wrong."""
    return thompson_search(
        problems(1),
        20,
        SEED,
        on_episode,
        allocate=allocate,
        network=allocate,
        errors=errors,
        ceiling=lambda _: 0.0,
        groups=GROUPS,
        settings=ThompsonSettings(),
    )


def imagining(on_episode: OnEpisode) -> SearchResult:
    """Run the preset of DDPG on weights of error curves that are wrong, with its world model."""
    network, features = (
        fake_problem(OPTIMUM)[1],
        [GroupFeatures(i, 40, 40, 8, 8, 1, 1, 100, 50) for i in range(4)],
    )
    problem = (network, SPACE, BUDGET, get_reward("accuracy"), features)
    dense = replace(network.evaluate(SPACE.dense), top1=100.0)
    arena = Arena(*problem, curves=lambda: CURVES, dense=lambda: dense)
    return make_agent(agent_preset("ddpg", episodes=16), arena, SEED)(1, on_episode)


def tpe(on_episode: OnEpisode) -> SearchResult:
    """Run Optuna's TPE for as many episodes after its warm-up as in it."""
    settings = TPESettings(warmup_episodes=8, guide=GUIDE)
    return tpe_search(problems(1), 16, SEED, on_episode, settings=settings, episode_length=GROUPS)


def from_best(on_episode: OnEpisode) -> SearchResult:
    """Run evolution from the best of three allocations."""
    guides = [(0.2,) * GROUPS, GUIDE, (0.5,) * GROUPS]
    return search_from_best(problems(2), 12, SEED, on_episode, guides=guides, agent=evolve)


def drawn(on_episode: OnEpisode) -> SearchResult:
    """Run random search."""
    return random_search(problems(1), 10, SEED, on_episode)


FAST = replace(
    preset("ddpg", GUIDE), warmup_episodes=8, sigma=0.1, actor_lr=1e-3, critic_lr=1e-2, follow_best=False
)
"""The preset with an actor that moves far enough in a few episodes to be seen in the widths."""

TRACES: dict[str, Callable[[OnEpisode], SearchResult]] = {
    "ddpg": partial(ddpg, preset("ddpg", GUIDE), 26, 1),
    "ddpg_two_envs": partial(ddpg, replace(preset("ddpg", GUIDE), warmup_episodes=5), 15, 2),
    "ddpg_paper": partial(ddpg, replace(preset("ddpg_paper"), warmup_episodes=8), 24, 1),
    "ddpg_fast": partial(ddpg, FAST, 24, 1),
    "evolution": partial(evolve(()), problems(1), 24, SEED),
    "evolution_guided": partial(evolve(GUIDE), problems(2), 11, SEED),
    "ddpg_imagining": imagining,
    "thompson": thompson,
    "netadapt": netadapt,
    "tpe": tpe,
    "random": drawn,
    "from_best": from_best,
}


def trace(name: str) -> Trace:
    """Return a search's episodes as (phase, widths, return rounded to 6 digits)."""
    lines: Trace = []

    def note(episode: Episode) -> None:
        widths = list(episode.info["evaluation"].widths)
        lines.append([episode.phase, widths, round(episode.value, 6)])

    torch.set_num_threads(1)
    TRACES[name](note)
    return lines


def read(name: str) -> Trace:
    """Return a trace as it was written."""
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]


def write(name: str) -> None:
    """Write a trace anew."""
    lines = [json.dumps(line, separators=(",", ":")) for line in trace(name)]
    (FOLDER / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
