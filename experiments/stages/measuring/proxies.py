"""Stage ``proxies``: whether the score of the search tells networks apart that it has to choose among.

A dense network may know the search images by heart. Then the score says little about other images, and a
search improves nothing but the score. Networks of the budget are judged as in a search, and on images that
nothing else has used. The test images are not touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from amc.progress import progress
from experiments.report.text import aligned, correlation_rows
from experiments.run.proxies import correlations, predicts, scores_of, similar_networks
from experiments.statistics import Interval

if TYPE_CHECKING:
    from experiments.run.run import Run

REWARD = "reward"
"""The name of the run's own score; the others are named in ``scores_of``."""


def run(run: Run) -> dict[str, Any]:
    """Correlate the scores of ``proxies.networks`` networks on search images and unseen images by rank.

    All evaluations are remembered, in ``evaluations.jsonl`` and ``unseen.jsonl``: a killed stage goes on with
    the next network, and a search finds the networks judged here.

    Raises:
        AmcError: there are too few different networks, or no allowed network meets the budget.
    """
    run.budget.check_feasible(run.space)
    config, problem = run.config.proxies, run.problem
    networks = similar_networks(run, config.networks, config.spread)
    evaluator, unseen = problem.evaluator(), problem.unseen_evaluator()
    rows: list[dict[str, Any]] = []
    with progress(len(networks), "proxies", "network", stays=True) as bar:
        for widths in networks:
            judged = evaluator.evaluate(widths)
            rows.append(
                {
                    "widths": list(widths),
                    "search": {REWARD: run.reward(judged), **scores_of(judged)},
                    "unseen": scores_of(unseen.evaluate(widths)),
                }
            )
            bar.update()
    spearman = correlations([row["search"] for row in rows], [row["unseen"] for row in rows])
    found = spearman[REWARD]["accuracy"]
    facts = {
        **run.judging(),
        "networks": len(rows),
        "spread": config.spread,
        "images": {"search_val": len(evaluator.labels), "unseen": len(unseen.labels)},
        "dense_top1": {"search_val": evaluator.dense.top1, "unseen": unseen.dense.top1},
        "trusted": predicts(found),
        "verdict": _verdict(run.reward.name, found, len(rows), len(unseen.labels)),
        "spearman": {
            name: {kind: _parts(interval) for kind, interval in own.items()} for name, own in spearman.items()
        },
        "rows": rows,
    }
    print("\n".join(f"proxies: {line}" for line in aligned(correlation_rows(facts)).splitlines()))
    print(f"proxies: {facts['verdict']}")
    return facts


def warning(run: Run) -> str | None:
    """Return the verdict if the stage comes before the search and found the score useless, else None."""
    stages = run.config.stages
    if "proxies" not in stages[: stages.index("search")]:
        return None
    facts = run.folder.recorded("proxies")
    return None if facts is None or facts["trusted"] else facts["verdict"]


def _verdict(reward: str, found: Interval | None, networks: int, images: int) -> str:
    """Say whether a search by ``reward`` can be trusted."""
    if found is None:
        same = f"{networks} networks of this budget all have the same, or the same accuracy on unseen images"
        return f"reward={reward} does not tell networks apart ({same}): {_USELESS}"
    about = f"rank correlation {found} with the accuracy on {images} unseen images, {networks} networks"
    if predicts(found):
        return f"reward={reward} tells networks of this budget apart ({about})"
    return f"reward={reward} does not tell networks of this budget apart ({about}): {_USELESS}"


_USELESS = "no gain of a search can be told by this score; use agent=greedy, or another reward or more images"


def _parts(found: Interval | None) -> list[float] | None:
    return None if found is None else [found.value, found.low, found.high]
