"""The checks of network, data and budget, made before any work is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from amc.budget.budget import Budget
from amc.cost.exported import check_excluded
from amc.errors import AmcError, FileError, SettingError
from amc.graph.groups import OUTPUT_REASON
from amc.latency.prediction.int8 import METHOD
from amc.loading import STRATEGY, WEIGHTS
from amc.models.checkpoint import load_into
from amc.models.registry import check_name
from amc.models.state_files import load_state_dict
from amc.quantization.settings import TRAINED
from amc.sparsity.weights import WHOLE, kept_weights, least_width, prunable_layers, whole_layers
from amc.strategy import Strategy
from amc.training.augment import check_channels
from amc.training.resume import first_batch_size
from amc.training.teaching.hints import hint_places
from experiments.command.memory.remembered import remembered_value
from experiments.config.agents import pretrained_actor
from experiments.config.budgets import asked_budgets, folder_name, listed_budgets
from experiments.config.runtimes import quantize_settings
from experiments.config.schema import Config
from experiments.config.sections.library import TrainConfig
from experiments.config.stages import FINETUNING, WITH_DENSE
from experiments.config.torchrun import torchrun_processes
from experiments.run.folder import RunFolder, quantizes
from experiments.run.run import Run
from experiments.run.values import SEARCHING, WITH_AGENT, judges_on_unseen, searches_apart

_TOLD = 3
"""Groups that are left whole, and whose reasons are printed."""
_NEED_LOGITS = (
    *("proxies", "choose", "schedule", "finetune", "compare", "correlate", "evaluate", "sparsify", "report"),
)
"""Stages that measure accuracies."""
_READS = {"export": (WEIGHTS, "prune"), "report": (STRATEGY, "search")}
"""Stages that need no dense network -> the file that they read first, and the stage that writes it."""
_OF_PRUNED = frozenset({"finetune", "serve"})
"""Stages that need a pruned network."""
_OF_MADE = frozenset({"export", "benchmark", "report"})
"""Stages that need a pruned network, or a quantized one."""
_TAKING = frozenset({"verify", "prune"})
"""Stages that make the strategy that the configuration names that of the folder."""
_JUDGING = frozenset({"evaluate", "report", "compare", "quantize", "export"})
"""Stages that judge on test images."""


def check(run: Run) -> None:
    """Refuse what network and data do not allow; ``check_values`` has checked the values alone.

    Raises:
        AmcError: names the setting or the budget.
    """
    config, problem = run.config, run.problem
    problem.settings()
    check_name(config.model.name)
    _check_processes(run)
    _check_results(run)
    _check_pretrained(run)
    _check_strategy(run)
    problem.load_data()
    _check_rewind(run)
    _check_held_out(run)
    _check_pictures(run)
    _check_start(run)
    _check_batches(run)
    _check_provable(run)
    if "sparsify" in config.stages:
        _check_densities(run)
    budgets = asked_budgets(config.budget)
    searches = bool({"plan", *SEARCHING} & set(config.stages))
    counted = searches and any("size" in ratios for ratios in budgets)
    if config.quantize.exclude and (counted or "quantize" in config.stages):
        check_excluded(problem.graph, problem.fresh_model(), quantize_settings(config.quantize))
    if searches:
        _check_outputs(run)
        for ratios in budgets:
            # a limit that needs a profile to come is checked by the search
            known = {k: ratio for k, ratio in ratios.items() if k != "latency" or run.profiled}
            check_feasible(run, run.budget_of(known))
        if any("size" in ratios for ratios in budgets) and not _quantizes(config):
            print(
                f"budget: size counts weights as quantize.method={config.quantize.method} stores them, but "
                "stage quantize is not in stages; quantize.method=none counts float32"
            )
        if any("latency" in ratios for ratios in budgets) and (made := other_than_int8(config)) is not None:
            print(
                f"budget: profile.int8=true times networks with all layers in {METHOD}, but {made}: the "
                "limit on the latency need not hold for the network that is made"
            )
    _check_steps(run)
    _check_hints(run)
    _check_classifies(run)
    _check_made(run)
    if "profile" in run.stages and not run.profiled:
        problem.latency.runtime()


def other_than_int8(config: Config) -> str | None:
    """Return why the job makes another network than those that ``profile.int8=true`` times, or None."""
    if not config.profile.int8:
        return None
    if not _quantizes(config):
        return "stage quantize is not in stages"
    settings = quantize_settings(config.quantize)
    if settings.form != METHOD:
        return f"quantize.method is {settings.method}"
    left = [name for name in ("exclude", "tolerance") if getattr(settings, name) not in ((), None)]
    return f"quantize.{left[0]} leaves layers float" if left else None


def _quantizes(config: Config) -> bool:
    """Whether stage ``quantize`` is among the stages of a job, or of one that is planned."""
    return "quantize" in {*config.stages, *(config.plan.stages or ())}


def _check_processes(run: Run) -> None:
    """Refuse more training processes than the machine has GPUs, if they are to train on GPUs."""
    if run.problem.device.type != "cuda":
        return
    for name, section in _trainings(run):
        if section.processes > (gpus := torch.cuda.device_count()):
            raise SettingError(
                f"{name}.processes={section.processes}, but this machine has {gpus} GPUs: each process "
                "takes one"
            )


def _trainings(run: Run) -> Iterator[tuple[str, TrainConfig]]:
    """Yield name and settings of each kind of training in the job, but for that of stage ``quantize``."""
    if "train" in run.config.stages and not run.problem.weights.given:
        yield "train", run.config.train
    if FINETUNING & set(run.config.stages):
        yield "finetune", run.config.finetune


def _check_start(run: Run) -> None:
    """Refuse an accuracy to stop at if the start of a training may know the images that judge."""
    untils = {name: section.until for name, section in _trainings(run) if section.until is not None}
    if not untils or run.problem.validates_honestly or not run.problem.starts_trained:
        return
    name, until = next(iter(untils.items()))
    raise SettingError(
        f"{name}.until={until:g} is judged on held-out images, but model.start gives the dense network all "
        f"weights, which may have been trained on them; write {name}.until=null, or leave model.start out"
    )


def _check_batches(run: Run) -> None:
    """Refuse more training processes than images in a batch, and RandAugment for images it does not know."""
    config, splits = run.config, run.problem.splits
    trainings = dict(_trainings(run))
    for name, section in trainings.items():
        processes = max(section.processes, torchrun_processes())
        if processes > 1 and (images := first_batch_size(splits, config.seed)) < processes:
            raise SettingError(
                f"{processes} processes ({name}.processes, or those of torchrun) are to train on batches of "
                f"{images} images: expected at most {images}, as each works on a part of every batch"
            )
    if "quantize" in config.stages and config.quantize.method in TRAINED:
        trainings["finetune"] = config.finetune
    for section in trainings.values():
        check_channels(run.train_settings(section), splits.input_shape[0])


def _check_results(run: Run) -> None:
    """Refuse to start where neither the folder has nor an earlier stage makes what the first stages read."""
    names, folder = run.stages, run.folder
    if "train" not in names and set(WITH_DENSE) & set(names):
        run.problem.weights.require()
    if (
        names[0] in _READS
        and not listed_budgets(run.config.budget)
        and not quantizes(folder.recorded("quantize"))
    ):
        name, stage = _READS[names[0]]
        folder.require(folder.path / name, stage)


def _check_made(run: Run) -> None:
    """Refuse a job in which a stage would miss its network after all the work before it."""
    for folder, names in _parts(run):
        found = _lacking(names, folder, run.config.quantize.method)
        if found is None or found[0] == names[0]:  # a first stage says itself what it lacks, at once
            continue
        name, why = found
        needed = "pruned" if name in _OF_PRUNED else "pruned or quantized"
        sparse = "sparsify" in run.stages and name == "report"
        other = ", or leave report out: that of sparsify is sparsity.html" if sparse else ""
        raise SettingError(
            f"stages=[{','.join(run.stages)}]: {name} needs a {needed} network, but {why}; add prune before "
            f"{name}{other}"
        )


def _parts(run: Run) -> list[tuple[RunFolder, list[str]]]:
    """Return each folder in which stages under a budget work, with these: one for each of several budgets."""
    listed = [
        (RunFolder(run.folder.path / folder_name(ratios)), run.stages_under(ratios))
        for ratios in listed_budgets(run.config.budget)
    ]
    return listed or [(run.folder, run.stages)]


def _lacking(names: Sequence[str], folder: RunFolder, method: str) -> tuple[str, str] | None:
    """Return the first stage that would find no network, and why, or None.

    A search may find another strategy, which removes what the folder has of the one before.

    Args:
        names: the stages.
        folder: of the run.
        method: of stage ``quantize``.
    """
    pruned, finder = False, None
    quantized: bool | None = None  # as the folder says
    for name in names:
        if name in ("search", "choose"):
            pruned, quantized, finder = False, False, name
        elif name in ("prune", "schedule"):
            pruned = True
        elif name == "quantize":
            quantized = method != "none"
        elif name in _OF_PRUNED | _OF_MADE and not pruned:
            file = folder.pruned if name in ("finetune", "report") else folder.model
            if finder is None and file.exists():
                continue
            if quantized is None:
                quantized = quantizes(folder.recorded("quantize"))
            if name in _OF_PRUNED or not quantized:
                return name, f"{folder} has none" if finder is None else f"nothing prunes what {finder} finds"
    return None


def _check_strategy(run: Run) -> None:
    """Refuse a strategy that this command names beside that of the folder, and that no stage takes over.

    Of several budgets each has a folder. What ``compare`` finds would stand beside results of another one.
    """
    given, folder = run.config.strategy, run.folder
    if given is None or "plan" in run.stages:
        return
    file, known = Path(given).expanduser().resolve(), remembered_value(folder.path, "strategy")
    if known is not None and Path(known) == file:
        return
    for part, names in _parts(run):
        if names and not _TAKING & set(names) and part.strategy.exists():
            _check_same(file, part.strategy, run)


def _check_same(given: Path, own: Path, run: Run) -> None:
    """Refuse a strategy of other widths than that of a folder."""
    if Strategy.load(given).groups != Strategy.load(own).groups:
        raise SettingError(
            f"strategy={run.config.strategy} is another than that of {own.parent}, and none of stages="
            f"[{','.join(run.stages)}] takes it over: add prune to stages, or leave strategy out"
        )


def _check_rewind(run: Run) -> None:
    """Refuse weights to rewind to that are of another network."""
    config = run.config
    if "schedule" in config.stages and (file := config.schedule.rewind) is not None:
        load_into(
            run.problem.fresh_model(), load_state_dict(Path(file).expanduser()), f"schedule.rewind={file}"
        )


def _check_hints(run: Run) -> None:
    """Refuse hints on a network without a place for them, before it is searched."""
    weight = run.config.finetune.hint_weight
    if FINETUNING & set(run.config.stages) and weight > 0 and not hint_places(run.problem.graph):
        raise SettingError(
            f"finetune.hint_weight={weight:g}: {run.config.model.name} has no layer whose inputs can be "
            "compared (all channels are read after a flatten); write finetune.hint_weight=0"
        )


def _check_pretrained(run: Run) -> None:
    """Refuse a file that is no pretrained actor, before anything is trained."""
    if WITH_AGENT & set(run.config.stages) and (file := run.config.agent.pretrained) is not None:
        pretrained_actor(file)


def _check_held_out(run: Run) -> None:
    """Refuse to judge on unseen images that the dense network was trained on; of search images only tell."""
    config, problem = run.config, run.problem
    trains = searches_apart(config) or "train" in config.stages or problem.weights.given
    if judges_on_unseen(config) and not trains:
        needed, kept = problem.splits.held_out, problem.weights.held_out
        if kept is not None and kept < needed:
            raise SettingError(
                f"data.search_val and data.unseen are {needed} images, but the network of {problem.folder} "
                f"was trained with {kept} held out, so it has seen some; lower data.unseen, or train again"
            )
    if (count := problem.search_images_trained_on) == 0:
        return
    told = (
        f"{count} of the {problem.splits.search_images} search_val images were trained on by the network of "
        f"{problem.folder}"
    )
    if FINETUNING & set(config.stages) and config.finetune.until is not None and config.data.unseen == 0:
        raise SettingError(
            f"finetune.until={config.finetune.until:g} is judged on search_val images, and {told}; write "
            "finetune.until=null, or train again"
        )
    if problem.splits.pictures is None:  # of these the next check tells
        kept = problem.weights.held_out
        print(f"data: {told}, with {kept} held out; lower data.search_val, or train again")


def _check_pictures(run: Run) -> None:
    """Refuse test and unseen pictures that the dense network was trained on; of search images only tell.

    The parts of a folder depend on all of its pictures: one more, or another ``data.split``, moves them.
    """
    config, problem = run.config, run.problem
    pictures, file = problem.splits.pictures, problem.folder.trained_on
    if pictures is None or not file.exists() or "train" in config.stages or problem.weights.given:
        return
    judging = {
        "test": bool(_JUDGING & set(config.stages)),
        "unseen": judges_on_unseen(config),
        "search_val": False,
    }
    for part, refused in judging.items():
        count = problem.weights.trained_among(pictures, part)
        if count is None:
            raise FileError(f"{file} names no pictures: run stages=[train] again, or remove it")
        if count == 0:
            continue
        told = (
            f"{count} of the {len(getattr(pictures, part))} {part} images were trained on by the network of "
            f"{problem.folder}: pictures, data.split or the held-out numbers have changed since; restore "
            "them, or train again"
        )
        if refused:
            raise SettingError(told)
        print(f"data: {told}")


def _check_provable(run: Run) -> None:
    """Prove the network prunable before any work, and say which groups stay whole as they are not."""
    config, problem = run.config, run.problem
    if not problem.cuts_channels:
        return
    proof = problem.proof
    trains = bool(FINETUNING & set(config.stages)) or ("train" in config.stages and not problem.weights.given)
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


def check_feasible(run: Run, budget: Budget) -> None:
    """Refuse a budget that no allowed network meets, and say which channels stay whole, and why.

    Raises:
        SettingError: the budget is too small.
    """
    try:
        budget.check_feasible(run.space)
    except SettingError as error:
        whole = [item for item in run.problem.graph.unprunable if item.reason != OUTPUT_REASON]
        if not whole:
            raise
        named = "; ".join(f"{item.name} ({item.reason})" for item in whole[:_TOLD])
        more = f"; and {len(whole) - _TOLD} more" if len(whole) > _TOLD else ""
        raise SettingError(f"{error}. Some channels stay whole: {named}{more}") from error


def _check_steps(run: Run) -> None:
    """Refuse steps of a schedule that would cut nothing: the size in integers is a share of that in float32.

    Raises:
        SettingError: the dense network is within a ratio below 1.
    """
    if "schedule" not in run.config.stages:
        return
    problem = run.problem
    for kind in {next(iter(ratios)) for ratios in asked_budgets(run.config.budget)}:
        whole = problem.cost(kind)(problem.graph.dense_widths) / problem.dense_cost(kind)
        if idle := [ratio for ratio in run.config.schedule.ratios if whole <= ratio < 1]:
            raise SettingError(
                f"schedule.ratios has {idle[0]:g}, but the dense network has {whole:.2g} of its {kind} in "
                "float32 before anything is cut; expected smaller ones"
            )


def _check_densities(run: Run) -> None:
    """Refuse densities that cannot be reached, as each layer keeps its minimum."""
    settings, model = run.config.sparsify, run.problem.fresh_model()
    modules = dict(model.named_modules())
    layers = prunable_layers(run.problem.graph, model)
    whole = whole_layers(model, layers, run.problem.excluded_layers)
    least = {
        layer.name: WHOLE if layer.name in whole else least_width(settings.min_density) for layer in layers
    }
    counts = {name: modules[name].weight.numel() for name in least}
    kept = sum(kept_weights(counts[name], width) for name, width in least.items()) / sum(counts.values())
    remedy = ", or exclude fewer layers: those of compressor.exclude keep all weights" if whole else ""
    for density in settings.densities:
        if kept > density:
            raise SettingError(
                f"sparsify.densities has {density:g}, but {kept:.4f} of the weights are left with every "
                f"layer at its minimum; lower sparsify.min_density{remedy}"
            )


def _check_outputs(run: Run) -> None:
    if run.reward.needs_logits and not run.problem.graph.classifies:
        raise AmcError(
            f"reward={run.config.reward} needs a network that returns one tensor (N, classes); "
            f"{run.problem.spec.name} does not: reward=likeness compares what it returns with the dense "
            "network"
        )
