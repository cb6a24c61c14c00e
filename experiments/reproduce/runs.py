"""What runs have measured, read from their folders."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from amc.errors import AmcError
from amc.strategy import Strategy
from experiments.run.episodes import read_episodes
from experiments.run.provenance import recorded_stages


@dataclass(frozen=True)
class Result:
    """What one run has measured.

    Attributes:
        job: network, data, budget and how candidates were judged: what its table is about.
        slug: the job in one word.
        strategy: the widths that were found.
        facts: what the stages recorded, by stage.
        provenance: commit, command, device and versions.
        episodes: lines of ``search.jsonl``; none where another run's strategy was evaluated.
    """

    job: tuple[str, ...]
    slug: str
    strategy: Strategy
    facts: Mapping[str, Mapping[str, Any]]
    provenance: Mapping[str, Any]
    episodes: Sequence[Mapping[str, Any]] = ()

    @property
    def agent(self) -> str:
        """Who searched."""
        return str(self.strategy.provenance["agent"])

    @property
    def value(self) -> float:
        """Return of the strategy on ``search_val``; -inf of a published one: no search judged it."""
        return float(self.strategy.provenance.get("value", -math.inf))

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.strategy.seed

    def top1(self, network: str) -> float | None:
        """Test accuracy in percent of ``dense``, ``pruned`` or ``finetuned``, where it was measured."""
        return self._judged(network, "top1")

    def divergence(self, network: str) -> float | None:
        """Mean KL(dense || network) on the test images, in nats, where it was measured."""
        return self._judged(network, "divergence")

    def _judged(self, network: str, what: str) -> float | None:
        found = self.facts["evaluate"].get(network, {}).get(what)
        return None if found is None else float(found)


def with_all_stages(provenance: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a provenance that names all stages that were run, with commits: calls may have added some."""
    words = [word for word in str(provenance["command"]).split() if not word.startswith("stages=")]
    stages = recorded_stages(folder)
    return {
        "stage_commits": dict.fromkeys(stages, provenance["commit"]),
        **provenance,
        "command": " ".join([*words, f"stages=[{','.join(stages)}]"]),
    }


def experiment_of(provenance: Mapping[str, Any]) -> str | None:
    """Return the recipe (``experiment=NAME``) that was run, if it was one, on images of its own kind.

    A search on images of another folder (``data.search_val_dir``) is not the recipe's.
    """
    words = str(provenance["command"]).split()
    if any(word.startswith("data.search_val_dir=") for word in words):
        return None
    return next((word[len("experiment=") :] for word in words if word.startswith("experiment=")), None)


def shown_command(command: str) -> str:
    """Return a command without the places of one machine, which ``DIR`` and ``FILE`` stand for."""
    words = []
    for word in command.split():
        key, equals, value = word.partition("=")
        if key == "run_dir":
            continue
        if equals and "/" in value and not value.startswith(("[", "experiments/")):
            value = "DIR" if key.endswith(("root", "dir")) else f"FILE{Path(value).suffix}"
        words.append(f"{key}{equals}{value}")
    return " ".join(words)


_BEFORE = {
    "prune.activation_rounds": (0, "rounds0"),
    "prune.held_out": (0, "heldout0"),
    "compressor.measured_images": (0, "measured0"),
    "budget.fit": ("cut", "cut"),
}
"""Settings that older runs do not have, the value that is as if they had, and what file names say of it."""


def read_results(folders: Iterable[Path]) -> list[Result]:
    """Read all runs below ``folders`` that have a strategy and test accuracies, in the order of their paths.

    Raises:
        AmcError: a record is damaged.
    """
    places = {path.parent.parent for folder in folders for path in folder.rglob("stages/evaluate.json")}
    return [_read(place) for place in sorted(places) if (place / "strategy.json").exists()]


def _read(folder: Path) -> Result:
    try:
        strategy = Strategy.load(folder / "strategy.json")
        facts = {path.stem: json.loads(path.read_text()) for path in (folder / "stages").glob("*.json")}
        provenance = with_all_stages(json.loads((folder / "provenance.json").read_text()), folder)
        model, data = str(strategy.model["name"]), str(provenance["data"]["name"])
        kind, share = strategy.budget["kind"], f"{100 * float(strategy.budget['ratio']):g}"
        judged, short = _proxy(folder)
        job = (model, data, f"{share}% of the {kind}", *judged)
        slug = re.sub(r"[^a-z0-9.]+", "_", "_".join([model, data, f"{kind}{share}", *short]).lower())
        _ = strategy.provenance["agent"], facts["evaluate"]["dense"]
        log = folder / "search.jsonl"
        episodes = read_episodes(log) if log.exists() else []
        return Result(job, slug, strategy, facts, provenance, episodes)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AmcError(f"{folder} is no finished run ({error!r})") from error


def _proxy(folder: Path) -> tuple[list[str], list[str]]:
    """Tell how candidates were judged and the winner refitted, in words and short, where the folder knows."""
    path = folder / ".hydra" / "config.yaml"
    if not path.exists():
        return [], []
    config = OmegaConf.load(path)
    images, refit = config.data.search_val, config.compressor.sequential_images
    words = f"judged by {config.reward} on {images:,} images" + (
        f" after a refit on {refit:,}" if refit else ""
    )
    if config.data.get("search_val_dir") and config.data.search_val_dir == config.data.test:
        words += ", which are the test images too"
    short = [config.reward, f"val{images}", *([f"refit{refit}"] if refit else [])]
    before = [
        (f"`{key}={value}`", tag)
        for key, (value, tag) in _BEFORE.items()
        if OmegaConf.select(config, key, default=value) == value
    ]
    if before:
        words += ", with " + ", ".join(setting for setting, _ in before)
    return [words], [*short, *(tag for _, tag in before)]
