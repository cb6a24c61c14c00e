"""The checks of what the configuration alone decides. Nothing here imports torch, which takes a second."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

from amc.budget.budget import check_ratio, get_fit
from amc.candidate.settings import CandidateSettings, PruneSettings
from amc.dotted import check_present, is_dotted
from amc.errors import FileError, SettingError, UnavailableError
from amc.export import ExportSettings, get_format
from amc.models.names import check_listed, is_code
from amc.quantization.settings import SMALL_SINCE, TRAINED
from amc.scoring.precision import AUTO, PRECISIONS, check_precision
from amc.scoring.strengths import check_corruptions
from amc.sparsity.names import check_order
from amc.strategy import Strategy
from amc.third_party import missing
from amc.training.settings import TrainSettings
from amc.workers.settings import WorkerSettings
from envs import Reward, get_reward
from experiments.command.overrides import key_of
from experiments.config import stages
from experiments.config.agents import (
    AGENTS,
    check_agent,
    check_search,
    episodes_of,
    needs_unseen,
    refuse_unseen,
)
from experiments.config.budgets import asked_budgets, check_given, check_schedule
from experiments.config.runtimes import check_measuring, quantize_settings
from experiments.config.schema import Config
from experiments.config.sections.data import ImageFolderData
from experiments.config.stages import FINETUNING
from experiments.config.torchrun import torchrun_processes
from experiments.run.trackers import check_tracker

SEARCHING = stages.SEARCHING
"""Stages in which an agent searches for widths."""
WITH_AGENT = frozenset({*SEARCHING, "sparsify"})
"""Stages in which an agent decides."""
_FINDING = ("search", "choose", "schedule")
"""Stages that find a strategy."""
_CARRYING_OUT = frozenset({"verify", "prune", "compare"})
"""Stages that read the strategy which the configuration names."""
_OF_WORKERS = frozenset({"workers.count", "workers.threads", "workers.timeout"})
"""Settings that a search without workers does not read."""
LEAST_NETWORKS = 5
"""Networks below which a rank correlation says nothing."""
LEAST_POLICIES = 3
"""Networks below which stage ``correlate`` has no correlation."""


def check_values(config: Config, overrides: Sequence[str] = ()) -> None:
    """Refuse an impossible value, an unknown name, a file or a module that is not there.

    Modules of the user's own are imported last: until then nothing needs torch. Of stages that are only
    planned the same is refused.

    Args:
        config: the configuration.
        overrides: those that the user gave.

    Raises:
        AmcError: names the setting.
    """
    jobs = _jobs(config)
    check_tracker(config.tracker)
    _check_numbers(config)
    for job in jobs:
        _check_parts(job)
        _check_settings(job)
        _check_workers(job, overrides)
        _check_budgets(job, overrides)
        _check_unseen(job)
        _check_strategy(job)
        _check_files(job)
    for job in jobs:
        _check_own(job)


def _jobs(config: Config) -> list[Config]:
    """Return the job, and the one that its stage ``plan`` is asked about, if it is another."""
    stages.check_names(config.stages)
    planned = config.plan.stages
    if planned is not None:
        stages.check_names(planned)
    return [config, replace(config, stages=[*planned])] if planned and "plan" in config.stages else [config]


def _check_numbers(config: Config) -> None:
    if not 0 <= config.seed < 2**32:
        raise SettingError(f"seed is {config.seed}; expected a number from 0 to {2**32 - 1}")
    if config.threads is not None and config.threads < 1:
        raise SettingError(f"threads is {config.threads}; expected at least 1")


def _check_parts(config: Config) -> None:
    """Look for the modules of dotted paths, and for the name of the network."""
    check_listed(config.model.name)
    for kind, name in _named(config):
        if is_dotted(name):
            check_present(name, kind)


def _named(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the kind and the name of each part that may be the user's own."""
    if is_code(config.model.name):
        yield "model", config.model.name
    yield "reward", config.reward
    yield "agent", config.agent.name
    if "train" in config.stages and config.train.teacher_function is not None:
        yield "train.teacher_function", config.train.teacher_function
    if _taught(config) and config.finetune.teacher_function is not None:
        yield "finetune.teacher_function", config.finetune.teacher_function
    if (factory := getattr(config.data, "factory", None)) is not None:
        yield "data.factory", factory
    for name in config.export.formats:
        yield "export format", name
    for name in (*config.latency.backends, config.profile.backend, config.serve.backend):
        yield "runtime", name


def _check_settings(config: Config) -> None:
    """Fill the settings of the library, which check themselves."""
    given = {each.name: getattr(config.compressor, each.name) for each in fields(CandidateSettings)}
    check_precision(given["precision"])
    CandidateSettings(**{**given, "precision": PRECISIONS[0]} if given["precision"] == AUTO else given)
    WorkerSettings(**asdict(config.workers))
    _check_training(config)
    _check_views(config)
    PruneSettings(**asdict(config.prune))
    ExportSettings(config.export.tolerance, config.export.opset)
    _check_quantize(config)
    if config.model.checkpoint is not None and config.model.pretrained:
        raise SettingError(
            f"model.checkpoint={config.model.checkpoint} and model.pretrained=true are both given, and each "
            "gives a trained network; use one of them"
        )
    if config.model.start is not None and comes_trained(config):
        raise SettingError(
            f"model.start={config.model.start} is where a training starts, but model.checkpoint or "
            "model.pretrained gives a trained network; use one of them"
        )
    check_corruptions(config.evaluate.corruptions)
    if config.choose.candidates < 1 or config.choose.epochs < 0:
        raise SettingError(
            f"choose.candidates={config.choose.candidates} choose.epochs={config.choose.epochs}: expected at "
            "least 1 candidate, and 0 epochs or more"
        )
    if "sparsify" in config.stages:
        _check_sparsify(config)


def _check_workers(config: Config, overrides: Sequence[str]) -> None:
    """Refuse settings of workers that are given where there are none."""
    if config.workers.kind != "serial" or not {"plan", *SEARCHING} & set(config.stages):
        return
    if given := [each for each in overrides if key_of(each) in _OF_WORKERS]:
        raise SettingError(
            f"{given[0]} is about workers, but workers=serial has none and judges one network at a time; "
            f"write workers=process, too, or leave {key_of(given[0])} out"
        )


def _check_training(config: Config) -> None:
    """Refuse impossible settings of trainings, and an accuracy to stop at that the dense network flatters."""
    for name, section in (("train", config.train), ("finetune", config.finetune)):
        settings = TrainSettings(**{each.name: getattr(section, each.name) for each in fields(TrainSettings)})
        if section.teacher is not None and section.teacher_function is not None:
            raise SettingError(f"{name}.teacher and {name}.teacher_function are both given; use one of them")
        if (section.teacher or section.teacher_function) and not settings.is_taught:
            given = "teacher" if section.teacher else "teacher_function"
            raise SettingError(
                f"{name}.{given} is given, but {name}.distill_weight=0 asks no teacher; write "
                f"{name}.distill_weight=0.5, or {name}.{given}=null"
            )
        if settings.hint_weight > 0 and (section.teacher or section.teacher_function):
            raise SettingError(
                f"{name}.hint_weight={settings.hint_weight:g} compares features, which only a network as "
                f"teacher has; write {name}.hint_weight=0, or leave the dense network as the teacher"
            )
        if not 1 <= section.processes <= config.data.batch_size:
            raise SettingError(
                f"{name}.processes={section.processes}: expected 1 to data.batch_size="
                f"{config.data.batch_size}, as each process works on a part of every batch"
            )
        if torchrun_processes() > config.data.batch_size:
            raise SettingError(
                f"torchrun has started {torchrun_processes()} processes: expected at most data.batch_size="
                f"{config.data.batch_size}, as each works on a part of every batch"
            )
        if settings.mixes and section.teacher is not None and not section.teacher.endswith(".onnx"):
            raise SettingError(
                f"{name}.teacher={section.teacher} holds one row for each image, but mixup and cutmix mix "
                f"images: write {name}.mixup=0 {name}.cutmix=0, or give a network"
            )
        if settings.sharded and section.processes == 1 and torchrun_processes() == 1:
            raise SettingError(
                f"{name}.sharded=true keeps parts of the weights on several processes, but there is one; "
                f"write {name}.processes=2, or start under torchrun"
            )
    until, asked = config.finetune.until, FINETUNING & set(config.stages)
    if asked and config.finetune.method == "lora" and (reason := missing("peft")) is not None:
        raise UnavailableError(f"finetune.method=lora: {reason}; pip install amc-search[lora]")
    if until is not None and asked and not validates_honestly(config):
        raise SettingError(
            f"finetune.until={until:g} is judged on held-out images, but the given dense network may have "
            "been trained on them, which flatters what is pruned from it; write finetune.until=null, or "
            "train the dense network here"
        )


def _check_budgets(config: Config, overrides: Sequence[str]) -> None:
    check_given(config.budget, overrides)
    get_fit(config.budget.fit)
    budgets = asked_budgets(config.budget)
    for kind, ratio in (limit for ratios in budgets for limit in ratios.items()):
        check_ratio(kind, ratio)
    if "verify" in config.stages and not any("latency" in ratios for ratios in budgets):
        raise SettingError(
            "stage verify measures whether a limit of the latency is met, and there is none; give "
            "budget.latency_ratio, or leave verify out"
        )
    if "schedule" not in config.stages:
        return
    if twice := [name for name in ("search", "choose", "verify", "prune") if name in config.stages]:
        raise SettingError(
            f"stages has schedule and {', '.join(twice)}; expected one of them: schedule searches and prunes "
            "at each of its steps"
        )
    if config.schedule.epochs < 0:
        raise SettingError(f"schedule.epochs is {config.schedule.epochs}; expected 0 or more")
    check_schedule(config.schedule.ratios, budgets)


def _check_unseen(config: Config) -> None:
    """Refuse to judge on unseen images if there are none."""
    if "proxies" in config.stages and config.proxies.networks < LEAST_NETWORKS:
        given = config.proxies.networks
        raise SettingError(f"proxies.networks is {given}; expected at least {LEAST_NETWORKS}")
    if "correlate" in config.stages and config.correlate.policies < LEAST_POLICIES:
        given = config.correlate.policies
        raise SettingError(f"correlate.policies is {given}; expected at least {LEAST_POLICIES}")
    if "proxies" in config.stages and config.proxies.spread <= 0:
        raise SettingError(f"proxies.spread is {config.proxies.spread}; expected a positive number")
    if (asking := asks_for_unseen(config)) is not None and config.data.unseen == 0:
        raise SettingError(
            f"{asking} judges networks on images that nothing else uses, and data.unseen is 0; write for "
            "example data.unseen=1000: so many are held out of training"
        )


def _check_views(config: Config) -> None:
    """Refuse to choose among views: those of one image belong together."""
    if config.data.search_views > 1 and config.data.select_search_val is not None:
        raise SettingError(
            f"data.search_views={config.data.search_views} shows each search image several times, and "
            f"data.select_search_val={config.data.select_search_val} would choose among these views; use one "
            "of them, and data.search_val for fewer images"
        )


def _check_quantize(config: Config) -> None:
    """Fill the settings, and refuse a version of ONNX's operators that cannot hold the weights."""
    settings, opset = quantize_settings(config.quantize), config.export.opset
    writes = {"quantize", "export"} <= set(config.stages) and "onnx" in config.export.formats
    if writes and settings.is_small and opset is not None and opset < SMALL_SINCE:
        raise SettingError(
            f"export.opset is {opset}, expected {SMALL_SINCE} or more, or null: "
            f"quantize.method={settings.method} has weights of 4 bits, or blocks that share a scale, which "
            "older operators lack"
        )


def _check_sparsify(config: Config) -> None:
    sparsify = config.sparsify
    check_order(sparsify.order)
    processes = max(config.finetune.processes, torchrun_processes())
    if config.finetune.method == "lora" or processes > 1:
        raise SettingError(
            f"stage sparsify trains masked weights, got finetune.method={config.finetune.method} and "
            f"{processes} processes (finetune.processes, or those of torchrun); expected full or norms, in "
            "one process"
        )
    if not 0 < sparsify.min_density <= 1:
        raise SettingError(f"sparsify.min_density is {sparsify.min_density}; expected a share in (0, 1]")
    densities = sparsify.densities
    falling = sorted(set(densities), reverse=True)
    if not falling or falling != densities or falling[0] > 1 or falling[-1] < sparsify.min_density:
        raise SettingError(
            f"sparsify.densities is {densities}; expected falling shares of the weights, from at most "
            f"1 to at least sparsify.min_density={sparsify.min_density}"
        )


def _check_strategy(config: Config) -> None:
    """Refuse a named strategy beside a stage that finds one: what it finds would not be carried out."""
    finding = [name for name in _FINDING if name in config.stages]
    if config.strategy is not None and finding:
        raise SettingError(
            f"strategy={config.strategy} and stage {finding[0]} are given, expected one of them: the file "
            "would be pruned, and not what the stage finds; if the run folder remembers it, strategy=null "
            "takes it back"
        )


def _check_files(config: Config) -> None:
    """Refuse files that the stages of the job would miss."""
    asked, root = set(config.stages), getattr(config.data, "root", None)
    files = (
        ("model.checkpoint", config.model.checkpoint, bool(asked & {*stages.WITH_DENSE})),
        ("model.start", config.model.start, "train" in asked),
        ("agent.pretrained", config.agent.pretrained, bool(asked & WITH_AGENT)),
        ("schedule.rewind", config.schedule.rewind, "schedule" in asked),
        ("strategy", config.strategy, bool(asked & _CARRYING_OUT)),
        ("train.teacher", config.train.teacher, "train" in asked and not comes_trained(config)),
        ("finetune.teacher", config.finetune.teacher, _taught(config)),
    )
    for key, file, needed in files:
        if needed and file is not None and not Path(file).expanduser().exists():
            raise FileError(f"{key}={file}: there is no such file")
    if config.strategy is not None and asked & _CARRYING_OUT:
        Strategy.load(Path(config.strategy))
    fetches = getattr(config.data, "download", None)  # None where there is nothing to download
    if root is not None and not fetches and not Path(root).expanduser().is_dir():
        hint = "" if fetches is None else "; data.download=true fetches them"
        raise FileError(f"no folder {root}: expected the images there; check data.root{hint}")


def _check_own(config: Config) -> None:
    """Check agent, reward, runtimes and formats, which may be of the user's own modules."""
    check_agent(config.agent, config.compressor.order)
    reward, asked = get_reward(config.reward), set(config.stages)
    if {"plan", *WITH_AGENT} & asked:
        check_search(config.agent, reward, get_fit(config.budget.fit))
    _check_enforced(config, reward)
    if "sparsify" in asked:
        _check_sparsifying(config)
    if {"search", "correlate"} <= asked:
        _check_correlated(config)
    for name in config.export.formats:
        get_format(name)
    check_measuring(config)


def _check_enforced(config: Config, reward: Reward) -> None:
    """Refuse a reward that enforces no budget where a stage has shares to meet."""
    if reward.enforces_budget:
        return
    for stage, shares in (
        ("schedule", "schedule.ratios and the budget"),
        ("sparsify", "sparsify.densities"),
    ):
        if stage in config.stages:
            raise SettingError(
                f"reward={reward.name} enforces no budget, but stage {stage} has to meet {shares}; use "
                "reward=accuracy or agreement"
            )


def _check_sparsifying(config: Config) -> None:
    """Refuse agents that cannot prune single weights."""
    refuse_unseen(config.agent, "stage sparsify")
    if AGENTS.find(config.agent.name).ranks_channels:
        raise SettingError(
            f"agent={config.agent.name} ranks channels, but stage sparsify decides single weights"
        )


def _check_correlated(config: Config) -> None:
    """Refuse to correlate over a search that judges too few networks."""
    agent, count = config.agent, episodes_of(config.agent)
    if count < LEAST_POLICIES:
        raise SettingError(
            f"stage correlate compares at least {LEAST_POLICIES} networks of the search, but "
            f"agent={agent.name} with agent.episodes={agent.episodes} judges {count}; expected an agent that "
            f"searches, and agent.episodes={LEAST_POLICIES} or more"
        )


def comes_trained(config: Config) -> bool:
    """Whether the configuration names weights for the dense network."""
    return config.model.checkpoint is not None or config.model.pretrained


def validates_honestly(config: Config) -> bool:
    """Whether the configuration names no weights that may have been trained on the held-out images.

    Those of ``model.start`` are judged once the network is known (``Problem.validates_honestly``).
    """
    if getattr(config.data, "search_val_dir", None) is None:
        return not comes_trained(config)
    return searches_apart(config)


def searches_apart(config: Config) -> bool:
    """Whether the search images are of a folder or a list of their own: not that of the training images."""
    data = config.data
    if not isinstance(data, ImageFolderData) or data.search_val_dir is None:
        return False
    whole = data.split is not None and not data.train.endswith(".csv")
    train, own = (
        os.path.realpath(os.path.join(data.root or "", name))
        for name in ("" if whole else data.train, data.search_val_dir)
    )
    return train != own


def judges_on_unseen(config: Config) -> bool:
    """Whether something is judged on the unseen images, if there are any."""
    stops = bool(FINETUNING & set(config.stages)) and config.finetune.until is not None
    by_choice = "choose" in config.stages or stops or (_taught(config) and config.finetune.best)
    return asks_for_unseen(config) is not None or bool(config.data.unseen and by_choice)


def _taught(config: Config) -> bool:
    """Whether something is trained with the teacher, and under ``best``, of ``finetune``.

    A quantization that trains leaves out what belongs to ``FINETUNING`` alone: ``method``, ``until`` and
    ``processes``.
    """
    learns = "quantize" in config.stages and config.quantize.method in TRAINED
    return learns or bool(FINETUNING & set(config.stages))


def asks_for_unseen(config: Config) -> str | None:
    """Return what judges networks on unseen images, or None."""
    if "proxies" in config.stages:
        return "stage proxies"
    return needs_unseen(config.agent) if SEARCHING & set(config.stages) else None
