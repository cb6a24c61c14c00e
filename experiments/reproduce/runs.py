"""The results of runs, read from their folders."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amc.errors import FileError
from amc.reading import read_json
from amc.strategy import Strategy
from experiments.reproduce.commands import agent_of, recipe_of, with_all_stages
from experiments.reproduce.problem import judged, limit_words
from experiments.run.episodes import read_episodes
from experiments.run.folder import MADE_OF, RunFolder
from experiments.run.provenance import SHAPE


@dataclass(frozen=True)
class Result:
    """The results of one run.

    Attributes:
        job: Network, data, budget and how candidates were judged; runs of the same job share a table.
        slug: The job as part of a file name.
        strategy: The widths that were found.
        facts: The record of every stage, by stage.
        provenance: Commit, command, device and versions.
        episodes: Lines of ``search.jsonl``; none where another run's strategy was evaluated.
        place: Run folder, or file and line of the record.
    """

    job: tuple[str, ...]
    slug: str
    strategy: Strategy
    facts: Mapping[str, Mapping[str, Any]]
    provenance: Mapping[str, Any]
    episodes: Sequence[Mapping[str, Any]] = ()
    place: str = field(default="", compare=False)

    @property
    def agent(self) -> str:
        """Name of the agent that searched, as its command names it: see ``agent_of``."""
        found = self.strategy.provenance
        return agent_of(str(found["agent"]), str(self.provenance["command"]), found.get("preset"))

    @property
    def asked_episodes(self) -> int:
        """Episodes that the search was asked for (``agent.episodes``); 0 where no record tells."""
        return int(self.strategy.provenance.get("episodes") or 0)

    @property
    def value(self) -> float:
        """Return of the strategy on ``search_val``; -inf for a published one, which no search judged."""
        return float(self.strategy.provenance.get("value", -math.inf))

    @property
    def recipe(self) -> str:
        """How the network was trained on, see ``recipe_of``; nothing if it was not fine-tuned."""
        command = self.provenance.get("tuned_by") or self.provenance["command"]
        return recipe_of(str(command)) if self.top1("finetuned") is not None else ""

    @property
    def seed(self) -> int:
        """Seed of the run; its strategy may be another run's."""
        return int(self.provenance.get("seed", self.strategy.seed))

    @property
    def widths_seed(self) -> int:
        """Seed of the search that found the widths; that of the run where no search judged them."""
        return self.strategy.seed if math.isfinite(self.value) else self.seed

    def top1(self, network: str) -> float | None:
        """Return the test accuracy in percent of ``dense``, ``pruned`` or ``finetuned``, if it is known."""
        return self._judged(network, "top1")

    def divergence(self, network: str) -> float | None:
        """Return the mean KL(dense || network) on the test images, in nats, where it was measured."""
        return self._judged(network, "divergence")

    def _judged(self, network: str, score: str) -> float | None:
        found = self.facts["evaluate"].get(network, {}).get(score)
        return None if found is None else float(found)


def complete(result: Result) -> Result:
    """Return a result that has what every table needs.

    Raises:
        KeyError: It has no agent, no accuracy of the dense network, or no command.
        TypeError, ValueError: Its agent or the number of its episodes is impossible.
    """
    needed = (
        (result.strategy.provenance, "agent"),
        (result.facts["evaluate"], "dense"),
        (result.provenance, "command"),
    )
    for facts, name in needed:
        if name not in facts:
            raise KeyError(name)
    if re.fullmatch(r"\w[\w.-]*", result.agent) is None:  # it becomes part of file names
        raise ValueError(f"{result.agent!r} is no name of an agent")
    if result.asked_episodes < 0:
        raise ValueError(f"{result.asked_episodes} is no number of episodes")
    return result


def judged_only(results: Iterable[Result], warn: Callable[[str], None]) -> list[Result]:
    """Return the results whose pruned network was judged; ``warn`` gets a line for each of the others."""
    kept = []
    for result in results:
        if "pruned" in result.facts["evaluate"]:
            kept.append(result)
        else:
            warn(
                f"{result.place} is left out, its pruned network was not judged: run stages=[prune,evaluate]"
            )
    return kept


SAME_DENSE = 0.02
"""Points of top-1 within which two machines measure the same dense network."""
JOB = 3
"""The first parts of ``Result.job``: network, data and budget. The rest is how candidates were judged."""
Jobs = Mapping[tuple[str, ...], Sequence[Result]]


def by_job(results: Iterable[Result]) -> Jobs:
    """Group the runs that belong to one table."""
    jobs: dict[tuple[str, ...], list[Result]] = defaultdict(list)
    for result in results:
        jobs[result.job].append(result)
    return jobs


def searches(results: Iterable[Result]) -> list[Result]:
    """Return one result of each search (agent, episodes, seed), whose network may be trained in several ways.

    It is the first that has searched, if one has. Others have only carried out its strategy: of these, one
    with the seed of the search comes first.
    """
    found: dict[tuple[str, int, int], Result] = {}
    for result in results:
        key = result.agent, result.asked_episodes, result.widths_seed
        known = found.setdefault(key, result)
        if _has_searched(result) > _has_searched(known):
            found[key] = result
    return list(found.values())


def _has_searched(result: Result) -> tuple[bool, bool]:
    return bool(result.episodes), result.seed == result.widths_seed


def row_names(results: Iterable[Result]) -> Callable[[Result], str]:
    """Return the function that names the row of a result in a table of ``results``.

    That is its agent. An agent whose searches are of several lengths has a row for each, such as ``ddpg, 50
    episodes``.
    """
    lengths: dict[str, set[int]] = defaultdict(set)
    for result in results:
        lengths[result.agent].add(result.asked_episodes)

    def name(result: Result) -> str:
        if len(lengths[result.agent]) < 2:
            return result.agent
        return f"{result.agent}, {result.asked_episodes or 'unknown'} episodes"

    return name


def by_row(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Group the runs of each row (see ``row_names``), in the order in which rows appear."""
    name, rows = row_names(results), defaultdict(list)
    for result in results:
        rows[name(result)].append(result)
    return rows


def read_results(folders: Iterable[Path]) -> list[Result]:
    """Read all runs below ``folders`` that have a strategy and test accuracies, in the order of their paths.

    Raises:
        AmcError: A record is damaged.
    """
    places = {path.parent.parent for folder in folders for path in folder.rglob("stages/evaluate.json")}
    return [_read(place) for place in sorted(places) if RunFolder(place).strategy.exists()]


def _read(folder: Path) -> Result:
    files = RunFolder(folder)
    try:
        strategy = Strategy.load(files.strategy)
        facts = _facts(files)
        provenance = with_all_stages(
            read_json(files.provenance, SHAPE, "run stages=[evaluate] again"), folder
        )
        model, data = str(strategy.model["name"]), str(provenance["data"]["name"])
        limits = _limits(strategy)
        words, short = judged(
            folder, facts.get("search", {}).get("images"), str(provenance["command"]), limits
        )
        job = (model, data, " and ".join(limit_words(k, s) for k, s in limits.items()), *words)
        tags = [model, data, *(f"{k}{s}" for k, s in limits.items()), *short]
        slug = re.sub(r"[^a-z0-9.]+", "_", "_".join(tags).lower())
        episodes = read_episodes(files.search) if files.search.exists() else []
        return complete(Result(job, slug, strategy, facts, provenance, episodes, str(folder)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{folder} is no finished run ({error!r})") from error


def _limits(strategy: Strategy) -> dict[str, str]:
    """Return the shares of the budget in percent, by kind; that which names it is the first."""
    ratios = {strategy.budget["kind"]: strategy.budget["ratio"], **strategy.budget.get("further", {})}
    return {kind: f"{100 * float(ratio):g}" for kind, ratio in ratios.items()}


def _facts(files: RunFolder) -> dict[str, dict[str, Any]]:
    """Return the records of all stages, less those that are about another network than ``evaluate`` is."""
    found = {path.stem: files.recorded(path.stem) or {} for path in sorted(files.records.glob("*.json"))}
    origins = {name: facts.pop(MADE_OF, None) for name, facts in found.items()}
    judged = origins.get("evaluate")
    return {name: facts for name, facts in found.items() if _agree(origins[name], judged)}


def _agree(one: Any, other: Any) -> bool:
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return True
    return all(one[name] == other[name] for name in one.keys() & other.keys())
