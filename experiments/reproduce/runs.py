"""The results of runs, read from their folders."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from amc.errors import FileError
from amc.reading import read_json
from amc.strategy import Strategy
from experiments.run.episodes import read_episodes
from experiments.run.folder import MADE_OF, RunFolder
from experiments.run.provenance import SHAPE, recorded_stages


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
    """

    job: tuple[str, ...]
    slug: str
    strategy: Strategy
    facts: Mapping[str, Mapping[str, Any]]
    provenance: Mapping[str, Any]
    episodes: Sequence[Mapping[str, Any]] = ()

    @property
    def agent(self) -> str:
        """Name of the agent that searched."""
        return str(self.strategy.provenance["agent"])

    @property
    def value(self) -> float:
        """Return of the strategy on ``search_val``; -inf for a published one, which no search judged."""
        return float(self.strategy.provenance.get("value", -math.inf))

    @property
    def recipe(self) -> str:
        """How the network was trained on, see ``recipe_of``; nothing if it was not fine-tuned."""
        return recipe_of(str(self.provenance["command"])) if self.top1("finetuned") is not None else ""

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.strategy.seed

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
    return result


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
    """Return one result of each agent and seed, which may have been fine-tuned in several ways."""
    found: dict[tuple[str, int], Result] = {}
    for result in results:
        found.setdefault((result.agent, result.seed), result)
    return list(found.values())


def by_agent(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Group the runs of each agent, in the order in which agents appear."""
    agents: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        agents[result.agent].append(result)
    return agents


def with_all_stages(provenance: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a provenance with all stages that were run and their commits.

    A later call may have added stages, which the recorded command does not name.
    """
    words = [word for word in str(provenance["command"]).split() if not word.startswith("stages=")]
    stages = recorded_stages(folder)
    return {
        "stage_commits": dict.fromkeys(stages, provenance["commit"]),
        **provenance,
        "command": " ".join([*words, f"stages=[{','.join(stages)}]"]),
    }


_RECIPE = ("finetune=", "finetune.", "choose.", "schedule.", "data.unseen=")
_MANNER = ("teacher_cache", "compile", "processes", "sharded", "sync_norms", "precision")
"""Settings of a training that change how it computes, and not what."""


def recipe_of(command: str) -> str:
    """Return the words of a command that decide how networks are trained after pruning."""
    words = shown_command(command).split()
    manner = tuple(f"finetune.{name}=" for name in _MANNER)
    kept = {word.partition("=")[0]: word for word in words if word.startswith(_RECIPE)}
    decisive = [word for word in kept.values() if not word.startswith(manner)]
    stages = [name for word in words if word.startswith("stages=[") for name in word[8:-1].split(",")]
    return " ".join(
        [*sorted(decisive), *(f"stage {name}" for name in ("schedule", "choose") if name in stages)]
    )


def experiment_of(provenance: Mapping[str, Any]) -> str | None:
    """Return the recipe (``experiment=NAME``) that was run, if it was one.

    A search on images of another folder (``data.search_val_dir``) does not count as the recipe.
    """
    words = str(provenance["command"]).split()
    if any(word.startswith("data.search_val_dir=") for word in words):
        return None
    return next((word[len("experiment=") :] for word in words if word.startswith("experiment=")), None)


def shown_command(command: str) -> str:
    """Return a command with ``DIR`` and ``FILE`` in place of the paths of one machine."""
    words = []
    for word in command.split():
        key, equals, value = word.partition("=")
        if key == "run_dir":
            continue
        if equals and "/" in value and not value.startswith(("[", "experiments/")):
            value = "DIR" if key.endswith(("root", "dir", "teacher_cache")) else f"FILE{Path(value).suffix}"
        words.append(f"{key}{equals}{value}")
    return " ".join(words)


_BEFORE = {
    "prune.activation_rounds": (0, "rounds0"),
    "prune.held_out": (0, "heldout0"),
    "compressor.measured_images": (0, "measured0"),
    "budget.fit": ("cut", "cut"),
}
"""Settings that older runs do not have -> the value that they ran with, and its tag in file names."""


_FLOOR = 0.2
"""``budget.min_preserve_ratio`` of the runs whose words do not name it."""


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
        kind, share = strategy.budget["kind"], f"{100 * float(strategy.budget['ratio']):g}"
        judged, short = _proxy(folder, facts.get("search", {}).get("images"))
        further = {k: f"{100 * ratio:g}" for k, ratio in strategy.budget.get("further", {}).items()}
        limits = " and ".join(limit_words(k, s) for k, s in {kind: share, **further}.items())
        job = (model, data, limits, *judged)
        tags = [f"{k}{s}" for k, s in {kind: share, **further}.items()]
        slug = re.sub(r"[^a-z0-9.]+", "_", "_".join([model, data, *tags, *short]).lower())
        episodes = read_episodes(files.search) if files.search.exists() else []
        return complete(Result(job, slug, strategy, facts, provenance, episodes))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{folder} is no finished run ({error!r})") from error


def limit_words(kind: str, share: str) -> str:
    """Return a limit in words, as ``Result.job`` has it; ``share`` is in percent of the dense network."""
    return f"{share}% of the {kind}"


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


def _proxy(folder: Path, images: int | None) -> tuple[list[str], list[str]]:
    """Return how candidates were judged: in words for the job, and in tags for the slug.

    Both are empty for a run without its configuration. ``images`` judged them, if the search has noted it.
    """
    path = RunFolder(folder).hydra / "config.yaml"
    if not path.exists():
        return [], []
    config = _plain(path)
    images, refit = config.data.search_val or images or 0, config.compressor.sequential_images
    words = f"judged by {config.reward} on {images:,} images" + (
        f" after a refit on {refit:,}" if refit else ""
    )
    if config.data.get("search_val_dir") and config.data.search_val_dir == config.data.test:
        words += ", which are the test images too"
    short = [config.reward, f"val{images}", *([f"refit{refit}"] if refit else [])]
    floor = OmegaConf.select(config, "budget.min_preserve_ratio", default=_FLOOR)
    if floor != _FLOOR:
        words += f", groups kept to at least {100 * floor:g}% in steps of {config.budget.round_to}"
        short.append(f"floor{100 * floor:g}step{config.budget.round_to}")
    before = [
        (f"`{key}={value}`", tag)
        for key, (value, tag) in _BEFORE.items()
        if OmegaConf.select(config, key, default=value) == value
    ]
    if before:
        words += ", with " + ", ".join(setting for setting, _ in before)
    return [words], [*short, *(tag for _, tag in before)]


def _plain(path: Path) -> DictConfig:
    """Read a configuration as data: texts that would be replaced, such as ``${oc.env:NAME}``, stay texts."""
    try:
        data = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"{path} is no configuration: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} is no configuration")
    return OmegaConf.create(_escaped(data))


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _escaped(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_escaped(inner) for inner in value]
    return value.replace("${", "$ {") if isinstance(value, str) else value
