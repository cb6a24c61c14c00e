"""Stage ``choose``: the best few networks of a search are trained for a short time, and the best then wins.

A search judges networks before any training, which evens out some of their differences. This stage prunes the
winner of the search and the next best networks, trains each as ``finetune`` says for ``choose.epochs``, and
makes the most accurate one the strategy of the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from amc.data import LabelledImages
from amc.errors import AmcError
from amc.strategy import Strategy
from experiments.run.run import Run
from experiments.stages.measuring.trials import Point, different, tried
from experiments.stages.networks.finetune import finetune, top1_on
from experiments.stages.networks.prune import cut

if TYPE_CHECKING:
    from amc.candidate.builder import CandidateBuilder

ROW = {"widths": [int], "return": float, "top1": float}
"""Shape of a line of ``choose.jsonl``; see ``amc.reading``."""


def run(run: Run) -> dict[str, Any]:
    """Write ``choose.jsonl``, one line for each network, and the ``strategy.json`` of the winner.

    The networks are judged on ``data.unseen`` images, or on search_val where there are none. Of equal ones
    that wins which the search puts first.

    Raises:
        FileError: there is no search of this run's dense network.
        AmcError: a network cannot be carried out.
    """
    episodes = run.records.require_episodes()
    found = candidates(
        episodes,
        run.records.read("search") or {},
        by_unseen=run.config.agent.select == "held_out",
    )[: run.config.choose.candidates]
    if not found:
        raise AmcError("the search has met no network within the budget: expected one to choose from")
    images, name = _judging(run)
    if not run.problem.validates_honestly:
        print(f"choose: the dense network may have been trained on {name}: its images tell little")
    short = _briefly(run)
    builder = run.problem.evaluator().builder
    rows = tried(
        short,
        found,
        run.folder.choose,
        ROW,
        lambda widths: _judged(short, builder, widths, images),
        "choose",
    )
    run.looked_up |= short.looked_up
    winner = max(range(len(rows)), key=lambda place: (rows[place]["top1"], -place))
    chosen = rows[winner]
    facts = {"value": chosen["return"], "chosen_from": len(rows), "chosen_top1": chosen["top1"]}
    _take(run, tuple(chosen["widths"]), episodes, facts)
    print(
        f"choose: number {winner + 1} of the {len(rows)} best networks has {chosen['top1']:.2f}% on {name} "
        f"after {run.config.choose.epochs} epochs, the first {rows[0]['top1']:.2f}%"
    )
    told = [{key: row[key] for key in ROW} for row in rows]
    return {"candidates": told, "chosen": winner, "images": name, "epochs": run.config.choose.epochs}


def candidates(
    episodes: Sequence[dict[str, Any]], record: Mapping[str, Any], *, by_unseen: bool
) -> list[Point]:
    """Return the different networks within the budget, the winner of the search first, then the better ones.

    Args:
        episodes: the lines of ``search.jsonl``.
        record: of stage ``search``; {} for a search that was stopped.
        by_unseen: whether scores on unseen images decide before returns; networks without one come last.
    """
    scores = {tuple(own["widths"]): own["held_out"] for own in episodes if by_unseen and "held_out" in own}
    # the indices of a user's own agent may repeat
    known = (record.get("best_episode"), record.get("best_return"))
    won = [tuple(own["widths"]) for own in episodes if (own["episode"], own["return"]) == known]

    def rank(point: Point) -> tuple[bool, float, float]:
        widths = tuple(point["widths"])
        return widths not in won[:1], -scores.get(widths, -math.inf), -point["return"]

    return sorted(different(episodes), key=rank)


def _judging(run: Run) -> tuple[LabelledImages, str]:
    """Return the images that judge, and their name."""
    if (unseen := run.problem.splits.unseen) is not None:
        return unseen, "unseen images"
    return run.problem.splits.search_val, "search_val"


def _briefly(run: Run) -> Run:
    """Return the run with ``choose.epochs`` of fine-tuning; a second tracker would log all metrics again."""
    config = replace(run.config, finetune=replace(run.config.finetune, epochs=run.config.choose.epochs))
    return Run(config, run.folder, run.problem, run.tracker)


def _judged(
    run: Run, builder: CandidateBuilder, widths: tuple[int, ...], images: LabelledImages
) -> dict[str, float]:
    """Prune and train a network, and return its accuracy on the images, in percent."""
    model, _ = cut(run, builder, widths, "choose")
    checkpoint = run.folder.checkpoint("choose")
    finetune(run, model, checkpoint, "choose")
    checkpoint.unlink(missing_ok=True)
    return {"top1": top1_on(images, model.cpu())}


def _take(
    run: Run, widths: tuple[int, ...], episodes: Sequence[dict[str, Any]], facts: dict[str, Any]
) -> None:
    """Make a network the run's strategy; what was made of another one is removed first."""
    former = Strategy.load(run.folder.require(run.folder.strategy, "search"))
    # another network than a repair of the former strategy has begun with
    before = {name: value for name, value in former.provenance.items() if name != "repaired_from"}
    first = next(each for each in episodes if tuple(each["widths"]) == widths and each["phase"] != "relaxed")
    own = {"episode": first["episode"], "search_val_top1": first["top1"], "held_out": first.get("held_out")}
    known = {name: value for name, value in {**before, **own, **facts}.items() if value is not None}
    strategy = run.make_strategy(widths, **known)
    if strategy.groups != former.groups:
        run.folder.forget("verify")
        run.folder.forget_pruned()
    strategy.save(run.folder.strategy)
