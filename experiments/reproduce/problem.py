"""What a search was asked for, in words for the title of its table and in tags for file names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from amc.digest import digest
from experiments.reproduce.commands import command_of, recipe_of, setting_of, shown_command, words_of
from experiments.run.folder import RunFolder

_BEFORE = {
    "prune.activation_rounds": (0, "rounds0"),
    "prune.held_out": (0, "heldout0"),
    "compressor.measured_images": (0, "measured0"),
    "budget.fit": ("cut", "cut"),
}
"""Settings that older runs do not have -> the value that they ran with, and its tag in file names."""
_FLOOR = 0.2
"""``budget.min_preserve_ratio`` of the runs whose words do not name it."""
_TOLD = frozenset(
    {
        *("reward", "data.search_val", "compressor.sequential_images", "budget.min_preserve_ratio"),
        *(f"budget.{kind}_ratio" for kind in ("macs", "params", "size", "latency")),
        *(f"budget.{kind}_ratios" for kind in ("macs", "params", "size", "latency")),
        *("experiment", "model", "model.name", "data", "data.factory", "budget", "budget.kind"),
        *("agent", "agent.name", "agent.episodes", "finetune"),
        *("model.checkpoint", "model.pretrained", "model.start"),
        *("data.root", "data.kwargs.root", "data.download", "data.workers", "data.allow_empty"),
        *("stages", "name", "seed", "run_dir", "strategy", "device", "threads", "workers", "tracker"),
    }
)
"""Settings that a table tells elsewhere, those of the dense network, and those of how a run computes."""
_SPARSIFY = "sparsify."
_AFTER = (
    "finetune.", "choose.", "schedule.", _SPARSIFY, "evaluate.", "correlate.", "proxies.", "export.",
    "latency.", "serve.", "report.", "workers.", "tracker.", "hydra",
)  # fmt: skip
"""Sections of what comes after the search or beside it."""
_OF_WEIGHTS = frozenset({"reward", "agent.episodes"})
"""Settings of `_TOLD` that the table of single weights tells nowhere else."""
_NOT_OF_WEIGHTS = frozenset({"sparsify.densities", "budget.round_to"})
"""Settings that it tells elsewhere, or that decide nothing there."""
_OF_KIND = {"profile.": "latency", "quantize.": "size"}
"""Sections that a search depends on only if it has a limit of this kind."""
_SHORT = 40
"""Letters of the settings in a file name; more of them are a hash."""


def limit_words(kind: str, share: str) -> str:
    """Return a limit in words, as ``Result.job`` has it; ``share`` is in percent of the dense network."""
    return f"{share}% of the {kind}"


def judged(
    folder: Path, images: int | None, command: str, limits: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Return how candidates were judged: in words for the job, and in tags for the slug.

    Both are empty for a run without its configuration.

    Args:
        folder: of the run.
        images: number of those that judged candidates, if the search has noted it.
        command: of the run; its settings that no other words tell stand at the end.
        limits: shares of the budget, by kind.
    """
    path = RunFolder(folder).hydra / "config.yaml"
    if not path.exists():
        return [], []
    config, told = _plain(path), set(_TOLD)
    images, refit = config.data.search_val or images or 0, config.compressor.sequential_images
    words = f"judged by {config.reward} on {images:,} images" + (
        f" after a refit on {refit:,}" if refit else ""
    )
    short = [config.reward, f"val{images}", *([f"refit{refit}"] if refit else [])]
    if config.data.get("search_val_dir") and config.data.search_val_dir == config.data.test:
        words += ", which are the test images too"
        short.append("ontest")
        told |= {"data.search_val_dir", "data.test"}
    floor = OmegaConf.select(config, "budget.min_preserve_ratio", default=_FLOOR)
    if floor != _FLOOR:
        words += f", groups kept to at least {100 * floor:g}% in steps of {config.budget.round_to}"
        short.append(f"floor{100 * floor:g}step{config.budget.round_to}")
        told.add("budget.round_to")
    for text, tag in _steps(config, setting_of(command, "stages") or ""):
        words += f", {text}"
        short.append(tag)
    before = {
        key: (f"`{key}={value}`", tag)
        for key, (value, tag) in _BEFORE.items()
        if OmegaConf.select(config, key, default=value) == value
    }
    further = {**dict(_untold(command, told | before.keys(), limits)), **_workers(config)}
    if settings := [
        *(setting for setting, _ in before.values()),
        *(f"`{k}={v}`" for k, v in further.items()),
    ]:
        words += ", with " + ", ".join(settings)
    return [words], [*short, *(tag for _, tag in before.values()), *_tags(further)]


def _steps(config: Any, stages: str) -> Iterator[tuple[str, str]]:
    """Yield in words and as a tag what stood in place of a search and a cut, or after the search."""
    named = stages.strip("[]").split(",")
    if "schedule" in named:
        steps = [f"{100 * float(ratio):g}" for ratio in config.schedule.ratios]
        early = f", rewound to {Path(config.schedule.rewind).name}" if config.schedule.rewind else ""
        epochs = config.schedule.epochs
        yield (
            f"cut in steps at {', '.join(steps)}% with {epochs} epochs between them{early}",
            f"steps{'_'.join(steps)}x{epochs}{'rewound' if early else ''}",
        )
    if "choose" in named:
        count, epochs = config.choose.candidates, config.choose.epochs
        yield f"the best of {count} after {epochs} epochs", f"best{count}x{epochs}"


def searches_of_weights(command: str) -> list[str]:
    """Return the words of a command that decide the searches of stage ``sparsify``, beside its row's own.

    These are agent and densities.
    """
    after = tuple(section for section in _AFTER if section != _SPARSIFY)
    told = (_TOLD - _OF_WEIGHTS) | _NOT_OF_WEIGHTS
    return [f"{key}={value}" for key, value in _untold(command, told, {}, after)]


def recipe_of_weights(command: str) -> str:
    """Return the words of a command that decide the trainings of stage ``sparsify`` and its searches."""
    recipe = recipe_of(command)
    known = words_of(recipe)
    searches = command_of(word for word in searches_of_weights(command) if word not in known)
    return " ".join(part for part in (recipe, searches) if part)


def _untold(
    command: str,
    told: Collection[str],
    limits: Mapping[str, str],
    after: tuple[str, ...] = _AFTER,
) -> Iterator[tuple[str, str]]:
    """Yield the settings of a command that change the search and that no other words tell, by key.

    Args:
        command: of the run.
        told: keys that are told elsewhere.
        limits: shares of the budget, by kind.
        after: beginnings of the keys that do not change the search.
    """
    given = dict(word.partition("=")[::2] for word in words_of(shown_command(command)) if "=" in word)
    for key, value in sorted(given.items()):
        name = key.lstrip("+~")
        needless = any(name.startswith(section) and kind not in limits for section, kind in _OF_KIND.items())
        if not (name in told or name.startswith(after) or needless):
            yield name, value


def _workers(config: Any) -> dict[str, str]:
    """Return the number of workers, if there are several: an agent learns after as many episodes."""
    kind, count = (OmegaConf.select(config, f"workers.{name}") for name in ("kind", "count"))
    return {} if kind in (None, "serial") or count in (None, 1) else {"workers.count": str(count)}


def _tags(settings: Mapping[str, str]) -> list[str]:
    """Return settings as parts of a file name, which differ where the settings do."""
    tags = [f"{key}_{value}" for key, value in settings.items()]
    if len("_".join(tags)) <= _SHORT and all(re.fullmatch(r"[\w.]+", tag, re.ASCII) for tag in tags):
        return tags
    return [f"with{digest(*(f'{key}={value} ' for key, value in settings.items()))[:8]}"]


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
