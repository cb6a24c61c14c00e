"""Optuna's tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011) over whole allocations."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

from agents.baselines import carry_out
from agents.checks import at_least, validate
from agents.protocol import Episode, OnEpisode, SearchResult, batches, better, rollouts


@dataclass(frozen=True)
class TPESettings:
    """Hyper-parameters.

    Attributes:
        warmup_episodes: episodes before the estimator is used; all but the guide are drawn uniformly.
        guide: the first episode's allocation; empty for none.

    Raises:
        ValueError: names an impossible setting, its value and what is expected.
    """

    warmup_episodes: int = field(default=10, metadata=at_least(0))
    guide: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        validate(self)


def import_optuna() -> Any:
    """Return the ``optuna`` module, which is an optional dependency.

    Raises:
        ValueError: it is not installed; the message says how to install it.
    """
    try:
        import optuna
    except ImportError as error:
        raise ValueError("agent=tpe needs its package: pip install 'amc-search[tpe]'") from error
    return optuna


def tpe_search(
    envs: Sequence[gym.Env],
    episodes: int,
    seed: int,
    on_episode: OnEpisode,
    *,
    settings: TPESettings,
    episode_length: int,
) -> SearchResult:
    """Search by Optuna's TPE sampler; see ``agents.protocol.Agent``.

    An allocation is one point of the unit cube with a dimension for every step. It is sampled as a whole
    before its episode, so observations are not used. The sampler learns from the executed actions instead
    of the requested ones. It learns from a batch once all of its episodes have ended; until then it avoids
    the points of the batch (Optuna's constant liar).

    Args:
        settings: the hyper-parameters.
        episode_length: steps of an episode.

    Raises:
        ValueError: Optuna is not installed.
    """
    optuna = import_optuna()
    names = [f"step{step:04d}" for step in range(episode_length)]
    space = {name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in names}
    study = _study(optuna, seed, settings.warmup_episodes, lie=len(envs) > 1)
    if settings.guide:
        study.enqueue_trial(dict(zip(names, settings.guide, strict=True)))
    best: Episode | None = None
    for batch in batches(episodes, len(envs)):
        trials = [study.ask(space) for _ in batch]
        policies = [carry_out([trial.params[name] for name in names]) for trial in trials]
        phase = "warmup" if batch.start < settings.warmup_episodes else "search"
        for trial, episode in zip(trials, rollouts(envs, policies, batch.start, phase), strict=True):
            on_episode(episode)
            best = better(best, episode)
            # A trial's parameters are final: close it, and add the executed actions as another trial.
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            executed = dict(zip(names, episode.executed, strict=True))
            study.add_trial(
                optuna.trial.create_trial(params=executed, distributions=space, value=episode.value)
            )
    assert best is not None
    return SearchResult("tpe", episodes, best)


def _study(optuna: Any, seed: int, warmup_episodes: int, *, lie: bool) -> Any:
    """Return an empty study in memory; ``lie`` switches the constant liar on."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():  # both options are experimental before Optuna 5
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=warmup_episodes, multivariate=True, constant_liar=lie, seed=seed
        )
    return optuna.create_study(direction="maximize", sampler=sampler)
