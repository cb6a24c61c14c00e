"""Stage ``search``: an agent looks for the widths of every channel group."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from agents import Episode, SearchResult
from amc.budget.allocation import Errors
from amc.candidate.builder import CandidateBuilder
from amc.candidate.evaluator import Evaluator
from amc.errors import AmcError, Stopped
from amc.importance.global_ranking import global_scores
from amc.progress import progress
from amc.result import Evaluation
from amc.workers.pool import open_pool
from envs.channel_pruning import Network
from envs.observation import group_features
from experiments.command.memory.remembered import goes_on
from experiments.config.agents import episodes_of
from experiments.config.arena import Arena
from experiments.config.searching import searched
from experiments.run.episodes import EpisodeWriter, Lessons, watching
from experiments.run.held_out import HeldOut
from experiments.run.room import room_left
from experiments.stages.measuring.plan import in_short
from experiments.stages.measuring.proxies import warning
from experiments.stages.policies.keeper import Keeper

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
    start = time.perf_counter()
    run.budget.check_feasible(run.space)
    if "search" in run.config.stages and (warned := warning(run)) is not None:
        print(f"search: {warned}")
    print(f"plan: {in_short(run)}")
    held_out = _held_out(run)
    with Keeper(run, episodes_of(run.config.agent), held_out) as keeper:
        found = _found(run, keeper, held_out)
    winner = _winner(run, found.result, held_out)
    keeper.settle(winner)
    if found.result.save is not None:
        found.result.save(run.folder.agent)
    else:
        run.folder.agent.unlink(missing_ok=True)
    room = room_left(run.space, winner.info["evaluation"].widths)
    _tell(run, found.result, winner.info["evaluation"], room, held_out)
    return {
        **_facts(run, found, winner, held_out),
        "seconds": round(time.perf_counter() - start, 2),
        "exactness": run.problem.proof.difference,
        **found.curves,
        **room,
    }


@dataclass(frozen=True)
class _Found:
    """What a search has found, and what it cost.

    Attributes:
        dense: the scores of the dense network.
        precision: precision of the candidates' forward pass.
        evaluations: number of distinct networks that were scored.
        cpu_seconds: time of scoring them.
        curves: facts of the error curves; see ``_known_curves``.
    """

    result: SearchResult
    dense: Evaluation
    precision: str
    evaluations: int
    cpu_seconds: float
    curves: dict[str, Any]


def _found(run: Run, keeper: Keeper, held_out: HeldOut | None) -> _Found:
    """Let the agent search, and keep what was learned for others in ``experience.npz``."""
    problem, episodes = run.problem, episodes_of(run.config.agent)
    log, record = run.folder.search, run.folder.record_of("search")
    with (
        closing(_evaluator(run)) as evaluator,
        _network(run, evaluator, episodes) as network,
        EpisodeWriter(log, problem.latency.model if run.profiled else None, record) as writer,
        progress(episodes, "search", "episode", stays=True) as bar,
    ):
        arena = _arena(run, network, evaluator.dense)
        lessons = Lessons(arena)
        watch = watching(writer, bar, run.tracker.log, keeper.offer, held_out=held_out)

        def noted(episode: Episode) -> None:
            lessons.note(episode)
            watch(episode)

        try:
            result = searched(
                run.config.agent, arena, run.config.seed, noted, at_once=run.workers().concurrency
            )
        except KeyboardInterrupt as stop:
            keeper.stop()
            raise _stopped(run, writer) from stop
        curves = _known_curves(run, arena)
        lessons.keep(run.folder.experience, problem.spec.name)
    return _Found(result, evaluator.dense, evaluator.precision, writer.distinct, writer.cpu_seconds, curves)


def _arena(run: Run, network: Network, dense: Evaluation) -> Arena:
    """Return what the agent may ask: environments over ``network``, error curves, global scores."""
    problem = run.problem
    return Arena(
        network,
        run.space,
        run.budget,
        run.reward,
        group_features(problem.graph),
        curves=partial(_curves, run),
        dense=lambda: dense,
        scores=partial(global_scores, problem.dense, problem.graph, calibration=problem.chosen.calibration),
    )


def _winner(run: Run, result: SearchResult, held_out: HeldOut | None) -> Episode:
    """Return the best episode by the score of the search, or by unseen images if these choose."""
    if held_out is None or run.config.agent.select != "held_out":
        return result.best
    assert held_out.best is not None
    return held_out.best


def _facts(run: Run, found: _Found, winner: Episode, held_out: HeldOut | None) -> dict[str, Any]:
    """Return the record of the stage, without what is known of any search."""
    result = found.result
    return {
        "agent": result.agent,
        **run.judging(),
        "group_names": list(run.problem.graph.group_names),
        "precision": found.precision,
        "images": len(run.problem.chosen.search_val),
        "episodes": result.episodes,
        "best_return": winner.value,
        "best_episode": winner.index,
        **({} if held_out is None else _unseen_facts(held_out, result.episodes)),
        "best_top1": winner.info["evaluation"].top1,
        "dense_top1": found.dense.top1,
        "dense_loss": found.dense.loss,
        "dense_return": _dense_return(run, found.dense),
        "evaluations": found.evaluations,
        "evaluation_cpu_seconds": found.cpu_seconds,
    }


def _stopped(run: Run, writer: EpisodeWriter) -> Stopped:
    """Return what the user is told who has stopped a search."""
    kept = f"the best strategy of {writer.count} episodes is in {run.folder.strategy}"
    none = "no episode within the budget had ended"
    again = goes_on(run.problem.original.folder.path)
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
