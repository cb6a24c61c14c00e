"""The checks of a configuration, made before any work is done."""

from __future__ import annotations

from dataclasses import asdict

from amc.budget.budget import Budget, check_ratio, get_fit
from amc.candidate.settings import PruneSettings
from amc.errors import AmcError, SettingError
from amc.export import get_format
from amc.graph.groups import OUTPUT_REASON
from amc.models.registry import check_name
from amc.quantization.settings import TRAINED
from amc.sparsity.scores import check_order
from envs import Reward
from experiments.config import stages
from experiments.config.agents import AGENTS, check_agent, check_search, needs_unseen, refuse_unseen
from experiments.config.budgets import asked_budgets, check_schedule
from experiments.config.runtimes import check_measuring, quantize_settings
from experiments.config.schema import Config
from experiments.run.proxies import LEAST_NETWORKS
from experiments.run.run import Run
from experiments.run.trackers import check_tracker

_TOLD = 3
"""Groups that are left whole, and whose reasons are printed."""
SEARCHING = frozenset({"search", "schedule"})
"""Stages in which an agent searches."""
_FINETUNING = {"schedule", "finetune", "compare", "correlate", "sparsify"}
"""Stages that train under the settings of ``finetune``."""
_NEED_LOGITS = ("proxies", "schedule", "finetune", "compare", "correlate", "evaluate", "sparsify", "report")
"""Stages that measure accuracies."""


def check(run: Run) -> None:
    """Refuse an impossible setting, or a budget that no allowed network meets.

    Raises:
        AmcError: names the setting or the budget.
    """
    config, problem = run.config, run.problem
    stages.check_names(config.stages)
    check_tracker(config.tracker)
    problem.settings()
    run.workers()
    if config.model.start is not None and problem.comes_trained:
        raise AmcError(
            f"model.start={config.model.start} is where a training starts, but model.checkpoint or "
            "model.pretrained gives a trained network; use one of them"
        )
    check_agent(config.agent, config.compressor.order)
    reward = run.reward
    get_fit(config.budget.fit)
    budgets = asked_budgets(config.budget)
    for kind, ratio in (limit for ratios in budgets for limit in ratios.items()):
        check_ratio(kind, ratio)
    _check_training(run)
    PruneSettings(**asdict(config.prune))
    for name in config.export.formats:
        get_format(name)
    check_measuring(config)
    _check_unseen(run)
    quantize_settings(config.quantize)
    check_name(config.model.name)
    problem.load_data()
    _check_provable(run)
    if "schedule" in config.stages:
        _check_schedule(config)
    if {"plan", *SEARCHING} & set(config.stages):
        check_search(config.agent, reward)
        _check_outputs(run)
        for ratios in budgets:
            # a limit that needs a profile to come is checked by the search
            known = {k: ratio for k, ratio in ratios.items() if k != "latency" or problem.profiled}
            _check_feasible(run, run.budget_of(known))
        if any("size" in ratios for ratios in budgets) and "quantize" not in config.stages:
            print(
                f"budget: size counts weights as quantize.method={config.quantize.method} stores them, but "
                "stage quantize is not in stages; quantize.method=none counts float32"
            )
    if "sparsify" in config.stages:
        _check_sparsify(config, reward)
    _check_classifies(run)
    if "profile" in run.stages and not problem.profiled:
        problem.available_backend()


def _check_training(run: Run) -> None:
    """Refuse impossible settings of trainings, and an accuracy to stop at that the dense network flatters."""
    for name, section in (("train", run.config.train), ("finetune", run.config.finetune)):
        settings = run.train_settings(section)
        if section.teacher is not None and section.teacher_function is not None:
            raise SettingError(f"{name}.teacher and {name}.teacher_function are both given; use one of them")
        if settings.hint_weight > 0 and (section.teacher or section.teacher_function):
            raise SettingError(
                f"{name}.hint_weight={settings.hint_weight:g} compares features, which only a network as "
                f"teacher has; write {name}.hint_weight=0, or leave the dense network as the teacher"
            )
        if section.processes < 1:
            raise SettingError(f"{name}.processes={section.processes}: expected 1 or more")
    until, asked = run.config.finetune.until, _FINETUNING & set(run.config.stages)
    if until is not None and asked and not run.problem.validates_honestly:
        raise SettingError(
            f"finetune.until={until:g} is judged on held-out images, but the given dense network may have "
            "been trained on them, which flatters what is pruned from it; write finetune.until=null, or "
            "train the dense network here"
        )


def _check_unseen(run: Run) -> None:
    """Refuse to judge on unseen images if there are none, or if the dense network was trained on them."""
    config, folder = run.config, run.problem.folder
    if "proxies" in config.stages and config.proxies.networks < LEAST_NETWORKS:
        given = config.proxies.networks
        raise SettingError(f"proxies.networks is {given}; expected at least {LEAST_NETWORKS}")
    if "proxies" in config.stages and config.proxies.spread <= 0:
        raise SettingError(f"proxies.spread is {config.proxies.spread}; expected a positive number")
    asking = "stage proxies" if "proxies" in config.stages else None
    asking = asking or (needs_unseen(config.agent) if SEARCHING & set(config.stages) else None)
    if asking is None:
        return
    if config.data.unseen == 0:
        raise SettingError(
            f"{asking} judges networks on images that nothing else uses, and data.unseen is 0; write for "
            "example data.unseen=1000: so many are held out of training"
        )
    own_folder = getattr(config.data, "search_val_dir", None) is not None
    if own_folder or "train" in config.stages or run.problem.comes_trained:
        return
    needed = config.data.search_val + config.data.unseen
    kept = (folder.recorded("train") or {}).get("held_out")
    if kept is not None and kept < needed:
        raise SettingError(
            f"data.search_val and data.unseen are {needed} images, but the network of {folder} was trained "
            f"with {kept} held out, so it has seen some; lower data.unseen, or train again"
        )


def _check_schedule(config: Config) -> None:
    """Refuse a schedule that leads nowhere, and a stage that it takes the place of."""
    if twice := [name for name in ("search", "verify", "prune") if name in config.stages]:
        raise SettingError(
            f"stages has schedule and {', '.join(twice)}; expected one of them: schedule searches and prunes "
            "at each of its steps"
        )
    if config.schedule.epochs < 0:
        raise SettingError(f"schedule.epochs is {config.schedule.epochs}; expected 0 or more")
    check_schedule(config.schedule.ratios, asked_budgets(config.budget))


def _check_provable(run: Run) -> None:
    """Prove the network prunable before any work, and say which groups stay whole as they are not."""
    config, problem = run.config, run.problem
    if not problem.cuts_channels:
        return
    proof = problem.proof
    trains = bool({"finetune", "schedule"} & set(config.stages)) or (
        "train" in config.stages and not problem.comes_trained
    )
    if trains and proof.untrainable is not None:
        raise AmcError(f"{problem.spec.name} cannot be trained: {proof.untrainable}")
    if proof.left_whole:
        reasons = {item.name: item.reason for item in proof.graph.unprunable}
        told = [f"{name} ({reasons[name]})" for name in proof.left_whole[:_TOLD]]
        more = len(proof.left_whole) - _TOLD
        rest = f"; and {more} more, which stages=[inspect] lists" if more > 0 else ""
        print(f"proof: left whole, as they cannot be cut exactly: {'; '.join(told)}{rest}")


def _check_classifies(run: Run) -> None:
    """Refuse stages that measure accuracies, if the network returns no logits."""
    asked = [name for name in run.config.stages if name in _NEED_LOGITS]
    if "quantize" in run.config.stages and (method := run.config.quantize.method) in TRAINED:
        asked.append(f"quantize with quantize.method={method}")
    if asked and not run.problem.graph.classifies:
        raise AmcError(
            f"{', '.join(asked)} in stages needs a classifier; {run.problem.spec.name} does not return "
            "logits (N, classes): search, prune, export and benchmark work without"
        )


def _check_feasible(run: Run, budget: Budget) -> None:
    """Refuse a budget that no allowed network meets, and say which channels stay whole, and why."""
    try:
        budget.check_feasible(run.space)
    except SettingError as error:
        whole = [item for item in run.problem.graph.unprunable if item.reason != OUTPUT_REASON]
        if not whole:
            raise
        named = "; ".join(f"{item.name} ({item.reason})" for item in whole[:_TOLD])
        more = f"; and {len(whole) - _TOLD} more" if len(whole) > _TOLD else ""
        raise SettingError(f"{error}. Some channels stay whole: {named}{more}") from error


def _check_sparsify(config: Config, reward: Reward) -> None:
    """Refuse impossible densities, and agents and rewards that cannot prune single weights."""
    sparsify = config.sparsify
    check_order(sparsify.order)
    refuse_unseen(config.agent, "stage sparsify")
    if not 0 < sparsify.min_density <= 1:
        raise SettingError(f"sparsify.min_density is {sparsify.min_density}; expected a share in (0, 1]")
    densities = sparsify.densities
    falling = sorted(set(densities), reverse=True)
    if not falling or falling != densities or falling[0] > 1 or falling[-1] < sparsify.min_density:
        raise SettingError(
            f"sparsify.densities is {densities}; expected falling shares of the weights, from at most "
            f"1 to at least sparsify.min_density={sparsify.min_density}"
        )
    if AGENTS.find(config.agent.name).ranks_channels:
        raise SettingError(
            f"agent={config.agent.name} ranks channels, but stage sparsify decides single weights"
        )
    if not reward.enforces_budget:
        raise SettingError(
            f"reward={reward.name} enforces no budget, but stage sparsify has to meet sparsify.densities; "
            "use reward=accuracy or agreement"
        )


def _check_outputs(run: Run) -> None:
    if run.reward.needs_logits and not run.problem.graph.classifies:
        raise AmcError(
            f"reward={run.config.reward} needs a network that returns one tensor (N, classes); "
            f"{run.problem.spec.name} does not: reward=likeness compares what it returns with the dense "
            "network"
        )
