"""Stage ``search``: an agent looks for the widths of every channel group."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tqdm import tqdm

from agents import Episode, SearchResult, run_search
from amc.budget.allocation import Errors
from amc.candidate.builder import CandidateBuilder
from amc.candidate.evaluator import Evaluator
from amc.dotted import own_part
from amc.errors import AmcError, FileError, Stopped
from amc.importance.global_ranking import global_scores
from amc.progress import progress
from amc.reading import set_aside
from amc.result import Evaluation
from amc.strategy import Strategy
from amc.workers.pool import open_pool
from envs.channel_pruning import Network
from envs.observation import group_features
from experiments.config.agents import episodes_of, make_agent
from experiments.config.arena import Arena
from experiments.run.episodes import EpisodeWriter, Former, Lessons, watching
from experiments.run.held_out import HeldOut
from experiments.run.room import room_left
from experiments.stages.policies.plan import in_short
from experiments.stages.policies.proxies import warning

if TYPE_CHECKING:
    from experiments.run.run import Run

_CURVE = 33
"""Values of a group's error curve that are recorded, at most."""


def run(run: Run) -> dict[str, Any]:
    """Write ``search.jsonl``, ``strategy.json`` and, if the agent learns, ``agent.zip``.

    An interrupted search keeps its best strategy. When it runs again on the same folder, it looks up known
    networks in ``evaluations.jsonl`` and continues to the result of an uninterrupted run. With K workers the
    agent learns after every K episodes, so the number of workers changes a search; their kind does not.

    With ``agent.patience`` or ``agent.select=held_out`` the best networks are also judged on unseen images,
    which may end the search and choose its winner (``experiments.run.held_out``).

    Raises:
        AmcError: no allowed network meets the budget, or the network cannot be cut exactly.
        Stopped: the user stopped the search.
    """
    start, problem = time.perf_counter(), run.problem
    run.budget.check_feasible(run.space)
    episodes = episodes_of(run.config.agent)
    dense, graph = problem.dense, problem.graph
    if "search" in run.config.stages and (warned := warning(run)) is not None:
        print(f"search: {warned}")
    print(f"plan: {in_short(run)}")
    held_out = _held_out(run)
    with (
        _Keeper(run, episodes, held_out) as keeper,
        closing(_evaluator(run)) as evaluator,
        _network(run, evaluator, episodes) as network,
        EpisodeWriter(run.folder.search, problem.latency_model if problem.profiled else None) as writer,
        progress(episodes, "search", "episode", stays=True) as bar,
    ):
        arena = Arena(
            network,
            run.space,
            run.budget,
            run.reward,
            group_features(graph),
            curves=partial(_curves, run),
            ceiling=lambda: run.reward(evaluator.dense),
            scores=partial(global_scores, dense, graph, calibration=problem.chosen.calibration),
        )
        agent = make_agent(run.config.agent, arena, run.config.seed)
        lessons = Lessons(arena)
        watch = watching(writer, bar, run.tracker.log, keeper.offer, held_out=held_out)

        def noted(episode: Episode) -> None:
            lessons.note(episode)
            watch(episode)

        search = partial(agent, run.workers().concurrency)
        try:
            with own_part("agent", run.config.agent.name):
                result = _checked(run_search(search, noted, name=run.config.agent.name), run)
        except KeyboardInterrupt as stop:
            keeper.stop()
            raise _stopped(run, writer) from stop
        judged, curves = evaluator.dense, _known_curves(run, arena)
        lessons.keep(run.folder.experience, problem.spec.name)
    winner = result.best
    if held_out is not None and run.config.agent.select == "held_out":
        assert held_out.best is not None
        winner = held_out.best
    keeper.settle(winner)
    if result.save is not None:
        result.save(run.folder.agent)
    else:
        run.folder.agent.unlink(missing_ok=True)
    best = winner.info["evaluation"]
    room = room_left(run.space, best.widths)
    _tell(run, result, best, room, held_out)
    return {
        "agent": result.agent,
        "reward": run.reward.name,
        "precision": evaluator.precision,
        "images": len(problem.chosen.search_val),
        "episodes": result.episodes,
        "best_return": winner.value,
        "best_episode": winner.index,
        **({} if held_out is None else _unseen_facts(held_out, result.episodes)),
        "best_top1": best.top1,
        "dense_top1": judged.top1,
        "dense_loss": judged.loss,
        "dense_return": _dense_return(run, judged),
        "evaluations": writer.distinct,
        "evaluation_cpu_seconds": writer.cpu_seconds,
        "seconds": round(time.perf_counter() - start, 2),
        "exactness": problem.proof.difference,
        **curves,
        **room,
    }


def _checked(result: object, run: Run) -> SearchResult:
    """Return the result of a search; one of the user's own may have forgotten it."""
    if isinstance(result, SearchResult):
        return result
    name = run.config.agent.name
    raise AmcError(f"agent {name!r} returned {type(result).__name__}; expected agents.SearchResult")


def _stopped(run: Run, writer: EpisodeWriter) -> Stopped:
    """Return what the user is told who has stopped a search."""
    kept = f"the best strategy of {writer.count} episodes is in {run.folder.strategy}"
    none = "no episode within the budget had ended"
    again = f"the same command with run_dir={run.problem.original.folder} goes on"
    return Stopped(f"search stopped; {kept if writer.best_evaluation else none}; {again}")


def _tell(
    run: Run, result: SearchResult, best: Evaluation, room: dict[str, Any], held_out: HeldOut | None
) -> None:
    """Print the result of a finished search."""
    score = f"{best.top1:.2f}%" if run.problem.graph.classifies else f"agreement {best.agreement:.4g}"
    found = f"{score} on search_val at {_cost(run, best)}"
    enough = held_out is not None and held_out.enough
    ended = f"; none of the last {run.config.agent.patience} did better on unseen images" if enough else ""
    print(f"search: {result.agent} found {found} in {result.episodes} episodes{ended}")
    if "advice" in room:
        print(f"search: {room['advice']}")


def _held_out(run: Run) -> HeldOut | None:
    """Return the judge of the best networks on unseen images, if the configuration asks for one."""
    agent, problem = run.config.agent, run.problem
    if agent.patience == 0 and agent.select == "search":
        return None

    def score(episode: Episode) -> float:
        return run.reward(problem.unseen_evaluator().evaluate(episode.info["evaluation"].widths))

    return HeldOut(score, agent.patience)


def _unseen_facts(held_out: HeldOut, episodes: int) -> dict[str, Any]:
    return {
        "stopped_after": episodes if held_out.enough else None,
        "held_out_best": held_out.best_score,
        "held_out_judged": len(held_out.scores),
    }


def _known_curves(run: Run, arena: Arena) -> dict[str, Any]:
    """Return the error curves, thinned, and the greedy widths, if the agent has asked for the curves."""
    if not run.problem.has_curves or not arena.weighable:
        return {}
    found = {name: _thinned(curve) for name, curve in arena.curves().items()}
    return {"error_curves": found, "greedy_widths": list(arena.greedy())}


def _thinned(curve: Sequence[float]) -> list[list[float]]:
    """Return at most ``_CURVE`` pairs of width and error at even distances, where the error is finite."""
    known = [(width, error) for width, error in enumerate(curve) if math.isfinite(error)]
    last, count = len(known) - 1, min(len(known), _CURVE)
    places = [round(place * last / max(count - 1, 1)) for place in range(count)]
    return [[known[place][0], float(f"{known[place][1]:.4g}")] for place in places]


def _dense_return(run: Run, dense: Evaluation) -> float | None:
    """Return the dense network's score; None if a user's own reward fails for the dense network."""
    try:
        return run.reward(dense)
    except AmcError:
        return None


def _evaluator(run: Run) -> Evaluator[CandidateBuilder]:
    with progress(len(run.problem.chosen.calibration), "calibrate", "image") as bar:
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
    limits = run.budget.limits
    reached = [f"{limit.kind}_ratio {limit.share(evaluation.widths):.4f}" for limit in limits]
    if len(limits) > 1:
        reached = [f"{own} (limit {limit.ratio:g})" for own, limit in zip(reached, limits, strict=True)]
    return ", ".join(reached)


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

    def __init__(self, run: Run, episodes: int, held_out: HeldOut | None) -> None:
        self._run = run
        self._episodes = episodes
        self._held_out = held_out
        self._by_unseen = run.config.agent.select == "held_out"
        self._path = run.folder.strategy
        self._old = _old_strategy(self._path)
        self._former = Former(self._path)
        self._is_stale = False

    def offer(self, episode: Episode) -> None:
        """Write the strategy of the best episode so far, unless an earlier attempt had a better one."""
        if self._by_unseen and self._held_out is not None and episode is not self._held_out.best:
            return
        strategy, old = self._strategy(episode), self._old
        value = "held_out" if self._by_unseen else "value"
        same = old is not None and _same_search(old, strategy)
        # a network of stage choose may have been judged on no unseen images
        before = old.provenance.get(value) if same and old is not None else None
        if before is None or before < strategy.provenance[value]:
            self._write(strategy)

    def settle(self, best: Episode) -> None:
        """Write the result of a finished search."""
        self._write(self._strategy(best))
        self.stop()

    def stop(self) -> None:
        """Remove what does not fit the strategy any more, at the end of a finished or stopped search."""
        # a search that was killed may have written this strategy, and not have come here
        if self._is_stale or self._run.is_outdated("prune"):
            self._run.folder.forget("choose", "verify", "schedule")
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
        unseen: dict[str, Any] = (
            {} if self._held_out is None else {"held_out": self._held_out.scores[episode.index]}
        )
        if self._by_unseen:
            unseen["select"] = "held_out"
        return self._run.make_strategy(
            evaluation.widths,
            agent=self._run.config.agent.name,
            reward=self._run.reward.name,
            value=episode.value,
            **unseen,
            episode=episode.index,
            episodes=self._episodes,
            search_val_top1=evaluation.top1,
            fingerprint=self._run.problem.fingerprint,
            **({"workers": at_once} if at_once > 1 else {}),
        )


def _same_search(one: Strategy, other: Strategy) -> bool:
    """Whether two strategies come from the same search of the same network and data."""
    names = ("agent", "reward", "episodes", "fingerprint", "workers", "select")
    return (one.seed, one.budget, [one.provenance.get(n) for n in names]) == (
        other.seed,
        other.budget,
        [other.provenance.get(n) for n in names],
    )
