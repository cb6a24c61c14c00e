"""Stage ``search``: an agent looks for the widths of every channel group."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tqdm import tqdm

from agents import Episode
from amc.budget.allocation import Errors
from amc.budget.budget import Budget
from amc.candidate.builder import CandidateBuilder
from amc.candidate.evaluator import Evaluator
from amc.errors import AmcError, FileError, Stopped
from amc.importance.global_ranking import global_scores
from amc.progress import progress
from amc.reading import set_aside
from amc.result import Evaluation
from amc.strategy import Strategy
from amc.workers.pool import open_pool
from envs import ChannelPruningEnv
from envs.channel_pruning import Network
from envs.observation import group_features
from experiments.config.agents import Knowledge, episodes_of, make_agent
from experiments.run.episodes import EpisodeWriter, Former, watching

if TYPE_CHECKING:
    from experiments.run.run import Run


def run(run: Run) -> dict[str, Any]:
    """Write ``search.jsonl``, ``strategy.json`` and, if the agent learns, ``agent.zip``.

    An interrupted search keeps its best strategy. When it runs again on the same folder, it looks up known
    networks in ``evaluations.jsonl`` and continues to the result of an uninterrupted run. With K workers the
    agent learns after every K episodes, so the number of workers changes a search; their kind does not.

    Raises:
        AmcError: no allowed network meets the budget, or the network cannot be cut exactly.
        Stopped: the user stopped the search.
    """
    start, problem = time.perf_counter(), run.problem
    run.budget.check_feasible(run.space)
    episodes = episodes_of(run.config.agent)
    dense, graph = problem.dense, problem.graph
    with (
        _Keeper(run, episodes) as keeper,
        closing(_evaluator(run)) as evaluator,
        _network(run, evaluator, episodes) as network,
        EpisodeWriter(run.folder.search, problem.latency_model if problem.profiled else None) as writer,
        progress(episodes, "search", "episode", stays=True) as bar,
    ):
        known = Knowledge(
            run.space,
            run.budget,
            curves=partial(_curves, run),
            relaxed_env=partial(_env, run, network, replace(run.budget, enforced=False)),
            ceiling=lambda: run.reward(evaluator.dense),
            scores=partial(global_scores, dense, graph, calibration=problem.splits.calibration),
        )
        agent = make_agent(run.config.agent, known, run.config.seed)
        envs = [_env(run, network, run.budget) for _ in range(run.workers().concurrency)]
        try:
            result = agent(envs, watching(writer, bar, run.tracker.log, keeper.offer))
        except KeyboardInterrupt as stop:
            keeper.stop()
            kept = f"the best strategy of {writer.count} episodes is in {run.folder.strategy}"
            none = "no episode within the budget had ended"
            again = f"the same command with run_dir={problem.folder} goes on"
            raise Stopped(f"search stopped; {kept if writer.best_evaluation else none}; {again}") from stop
        judged = evaluator.dense
    keeper.settle(result.best)
    if result.save is not None:
        result.save(run.folder.agent)
    else:
        run.folder.agent.unlink(missing_ok=True)
    best = result.best.info["evaluation"]
    score = f"{best.top1:.2f}%" if run.problem.graph.classifies else f"agreement {best.agreement:.4g}"
    found = f"{score} on search_val at {_cost(run, best)}"
    print(f"search: {result.agent} found {found} in {result.episodes} episodes")
    return {
        "agent": result.agent,
        "reward": run.reward.name,
        "precision": evaluator.precision,
        "episodes": result.episodes,
        "best_return": result.best.value,
        "best_episode": result.best.index,
        "best_top1": best.top1,
        "dense_top1": judged.top1,
        "dense_loss": judged.loss,
        "dense_return": _dense_return(run, judged),
        "evaluations": writer.distinct,
        "evaluation_cpu_seconds": writer.cpu_seconds,
        "seconds": round(time.perf_counter() - start, 2),
        "exactness": problem.proof.difference,
    }


def _dense_return(run: Run, dense: Evaluation) -> float | None:
    """Return the dense network's score; None if a user's own reward fails for the dense network."""
    try:
        return run.reward(dense)
    except AmcError:
        return None


def _env(run: Run, network: Network, budget: Budget) -> ChannelPruningEnv:
    return ChannelPruningEnv(network, run.space, budget, run.reward, group_features(run.problem.graph))


def _evaluator(run: Run) -> Evaluator[CandidateBuilder]:
    with progress(len(run.problem.splits.calibration), "calibrate", "image") as bar:
        return run.problem.evaluator(bar.update)


def _curves(run: Run) -> Errors:
    with progress(None, "measure", "network") as bar:
        return run.problem.curves()(bar.update)


def _network(
    run: Run, evaluator: Evaluator[CandidateBuilder], episodes: int
) -> AbstractContextManager[Network]:
    """Return the evaluator itself, or a pool of workers that share it."""
    settings = run.workers()
    if settings.kind == "serial":
        return nullcontext(evaluator)
    needed = replace(settings, count=min(settings.count, episodes))
    return closing(open_pool(evaluator, needed, lambda line: tqdm.write(f"search: {line}", file=sys.stderr)))


def _cost(run: Run, evaluation: Evaluation) -> str:
    budget = run.budget
    return f"{budget.kind}_ratio {budget.cost(evaluation.widths) / budget.dense_cost:.4f}"


def _old_strategy(path: Path) -> Strategy | None:
    """Read the strategy of an earlier search; a damaged one is set aside, as this search makes it again."""
    try:
        return Strategy.load(path) if path.exists() else None
    except FileError as error:
        set_aside(path, error)
        return None


class _Keeper:
    """Keeps ``strategy.json`` at the best episode, and removes files of the run that no longer fit it.

    A resumed search repeats its first episodes, which are worse. A better strategy from an earlier attempt
    of the same search is therefore kept until the search reaches it.
    """

    def __init__(self, run: Run, episodes: int) -> None:
        self._run = run
        self._episodes = episodes
        self._path = run.folder.strategy
        self._old = _old_strategy(self._path)
        self._former = Former(self._path)
        self._is_stale = False

    def offer(self, episode: Episode) -> None:
        """Write an episode's strategy, unless an earlier attempt of this search had a better one."""
        strategy = self._strategy(episode)
        old = self._old
        if old is None or not _same_search(old, strategy) or old.provenance["value"] < episode.value:
            self._write(strategy)

    def settle(self, best: Episode) -> None:
        """Write the result of a finished search."""
        self._write(self._strategy(best))
        self.stop()

    def stop(self) -> None:
        """Remove what does not fit the strategy any more, at the end of a finished or stopped search."""
        if self._is_stale:
            self._run.folder.forget("verify")
            self._run.folder.forget_pruned()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Restore the strategy of an earlier search if this one fails."""
        if isinstance(error, Exception):
            self._former.restore()

    def _write(self, strategy: Strategy) -> None:
        self._is_stale |= self._old is None or self._old.groups != strategy.groups
        strategy.save(self._path)
        self._old = strategy

    def _strategy(self, episode: Episode) -> Strategy:
        evaluation = episode.info["evaluation"]
        at_once = self._run.workers().concurrency
        return self._run.make_strategy(
            evaluation.widths,
            agent=self._run.config.agent.name,
            reward=self._run.reward.name,
            value=episode.value,
            episode=episode.index,
            episodes=self._episodes,
            search_val_top1=evaluation.top1,
            fingerprint=self._run.problem.fingerprint,
            **({"workers": at_once} if at_once > 1 else {}),
        )


def _same_search(one: Strategy, other: Strategy) -> bool:
    """Whether two strategies come from the same search of the same network and data."""
    names = ("agent", "reward", "episodes", "fingerprint", "workers")
    return (one.seed, one.budget, [one.provenance.get(n) for n in names]) == (
        other.seed,
        other.budget,
        [other.provenance.get(n) for n in names],
    )
