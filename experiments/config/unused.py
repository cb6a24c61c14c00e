"""Remarks on settings that are given and that nothing in the job reads.

One table says it all: which settings, in which stages one would expect them to count, and why they do not.
Values of recipes are no settings that are given. ``unused_by_agents.py`` has remarks on those of agents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

from amc.quantization.settings import FLOAT_BITS, TRAINED, QuantizeSettings
from amc.strategy import Strategy
from experiments.command.overrides import key_of, text_of
from experiments.config.agents import ALLOCATIONS
from experiments.config.budgets import LISTS, SINGLE
from experiments.config.schema import Config
from experiments.config.sections.library import TrainConfig
from experiments.config.stages import CUTTING, FINETUNING, SEARCHING, STAGES, UNDER_BUDGET
from experiments.config.torchrun import torchrun_processes


@dataclass(frozen=True)
class Job:
    """A job that has been checked.

    Attributes:
        config: its configuration.
        calibration: number of calibration images.
        profiled: whether there is a limit on the latency, and a latency model for it.
        remembered: key -> the value that the run folder remembers from earlier commands, quotes removed; None
            without one.
    """

    config: Config
    calibration: int
    profiled: bool = False
    remembered: Callable[[str], str | None] = lambda key: None

    @property
    def asked(self) -> frozenset[str]:
        """The stages of the job."""
        return frozenset(self.config.stages)


Why = Callable[[Job], str | None]
"""What follows on "no effect", or None if the settings count."""


@dataclass(frozen=True)
class _Row:
    """Settings without effect.

    Attributes:
        keys: settings; the name of a section stands for all of its settings.
        stages: the remark is for jobs with one of them.
        why: what follows on "no effect", or None if they count.
        new: whether settings that the run folder remembers are left out: an earlier job has read them, or
            told of them.
    """

    keys: tuple[str, ...]
    stages: frozenset[str]
    why: Why
    new: bool = False


def remarks(job: Job, overrides: Sequence[str]) -> Iterator[str]:
    """Yield a line for each group of given settings that nothing in the job reads.

    Args:
        job: it has been checked.
        overrides: those that the user gave; ``null`` and ``[]`` take a setting back.
    """
    told: set[str] = set()
    given = [each for each in overrides if each.partition("=")[2] not in ("null", "[]")]
    for row in _ROWS:
        words = [each for each in given if _is_of(key_of(each), row.keys) and each not in told]
        if row.new:
            words = [each for each in words if job.remembered(key_of(each)) != text_of(each)]
        if words and job.asked & row.stages and (why := row.why(job)) is not None:
            told.update(words)
            yield f"{', '.join(each.lstrip('+') for each in words)}: no effect{why}"


def _is_of(key: str, keys: Sequence[str]) -> bool:
    return any(key == own or key.startswith(f"{own}.") for own in keys)


def _comes_trained(job: Job) -> str | None:
    model = job.config.model
    if model.checkpoint is None and not model.pretrained:
        return None
    source = "model.pretrained=true" if model.checkpoint is None else f"model.checkpoint={model.checkpoint}"
    return (
        f", as {source} gives a trained network, whose accuracy is told; model.start=FILE trains one further"
    )


def _section(job: Job, name: str) -> TrainConfig:
    section: TrainConfig = getattr(job.config, name)
    return section


def _no_adapters(job: Job, name: str) -> str | None:
    method = _section(job, name).method
    return None if method == "lora" else f", as {name}.method={method} has no adapters"


def _no_hints(job: Job, name: str) -> str | None:
    section = _section(job, name)
    return None if section.hint_weight or section.hint_maps == "trained" else f", as {name}.hint_weight is 0"


def _untaught(job: Job, name: str) -> str | None:
    return (
        None
        if _section(job, name).distill_weight
        else f", as {name}.distill_weight is 0: no teacher's logits"
    )


def _alone(job: Job, name: str) -> str | None:
    section = _section(job, name)
    alone = max(section.processes, torchrun_processes()) == 1
    return ", as one process trains" if alone and not section.sync_norms else None


def _no_wandb(job: Job) -> str | None:
    name = job.config.tracker.name
    return None if name == "wandb" else f", as tracker={name} does not read it"


def _one_network(job: Job) -> str | None:
    name = job.config.agent.name
    return f", as agent={name} makes one network" if name in ALLOCATIONS else None


def _no_refit(job: Job) -> str | None:
    return None if job.config.compressor.refit else ", as compressor.refit=false refits nothing"


def _not_in_sequence(job: Job) -> str | None:
    return None if job.config.prune.sequential else ", as prune.sequential=false leaves out that refit"


def _candidates_not_in_sequence(job: Job) -> str | None:
    config = job.config.compressor
    if config.sequential_images or not (config.activation_rounds or config.measured_in_sequence):
        return None
    return ", as compressor.sequential_images=0 refits no candidate in sequence"


def _all_images(job: Job) -> str | None:
    if job.config.compressor.sequential_images <= job.calibration:
        return None
    return f" above {job.calibration}, as there are {job.calibration} calibration images"


def _profiled(job: Job) -> str | None:
    if not job.profiled or "profile" in job.asked:
        return None
    return ", as the folder is profiled already; run stages=[profile] again"


def _quantizes_nothing(job: Job) -> str | None:
    return ", as quantize.method=none quantizes nothing" if job.config.quantize.method == "none" else None


def _halves(job: Job) -> str | None:
    method = job.config.quantize.method
    return f", as quantize.method={method} stores floats of 16 bits" if method in FLOAT_BITS else None


def _quantizes_untrained(job: Job) -> str | None:
    method = job.config.quantize.method
    return None if method in TRAINED else f", as quantize.method={method} trains nothing"


def _no_percentile(job: Job) -> str | None:
    ranges = job.config.quantize.ranges
    return None if ranges == "percentile" else f", as quantize.ranges={ranges} takes no percentile"


def _trains_in_its_own_way(job: Job) -> str | None:
    method = job.config.quantize.method
    if method not in TRAINED or job.asked & FINETUNING:
        return None
    return f", as quantize.method={method} trains all weights in one process, for quantize.epochs"


def _single_weights(job: Job, others: frozenset[str], instead: str) -> str | None:
    return None if job.asked & others else f", as stage sparsify {instead}"


def _other_multiple(job: Job) -> str | None:
    file, multiple = job.config.strategy, job.config.budget.round_to
    if file is None or job.asked & {*SEARCHING, "verify"}:
        return None
    groups = Strategy.load(Path(file)).groups
    odd = next((each for each in groups if each.kept % multiple and each.kept != each.dense), None)
    return None if odd is None else f", as strategy={file} keeps {odd.kept} channels of group {odd.name}"


_CUTS = frozenset({"choose", "prune", "schedule", "compare", "correlate"})
"""Stages that refit what they cut."""
_JUDGES = SEARCHING | {"proxies", "correlate"}
"""Stages that judge candidates."""
_QUANTIZE = frozenset({"quantize"})
_SPARSIFY = frozenset({"sparsify"})
_OF_QUANTIZE = [each.name for each in fields(QuantizeSettings) if each.name != "method"]
_OF_FLOATS = (
    *("epochs", "lr", "method", "lora_rank", "until", "hint_weight", "hint_maps", "compile", "sharded"),
    *("processes", "sync_norms"),
)
"""Settings of ``finetune`` that a quantization which trains leaves out."""
_OF_CANDIDATES = (
    *("order", "prune_coupled", "max_inputs", "refit", "ridge", "positions_per_image", "sequential_images"),
    *("reestimate_norms", "activation_rounds", "measured_images", "measured_in_sequence", "cache_mib"),
)
"""Settings of ``compressor`` about channels."""


def _of_training(name: str, stages: frozenset[str]) -> tuple[_Row, ...]:
    """Return the rows of a section of training settings."""
    return (
        _Row((f"{name}.lora_rank",), stages, partial(_no_adapters, name=name)),
        _Row((f"{name}.hint_maps",), stages, partial(_no_hints, name=name)),
        _Row((f"{name}.teacher_cache", f"{name}.distill_temperature"), stages, partial(_untaught, name=name)),
        _Row((f"{name}.sync_norms",), stages, partial(_alone, name=name)),
    )


_ROWS = (
    _Row(("train",), frozenset({"train"}), _comes_trained),
    *_of_training("train", frozenset({"train"})),
    *_of_training("finetune", FINETUNING),
    _Row(
        ("tracker.mode", "tracker.project", "tracker.entity", "tracker.group"),
        frozenset(STAGES),
        _no_wandb,
        new=True,
    ),
    _Row(("agent.episodes",), SEARCHING | _SPARSIFY, _one_network),
    _Row(("prune",), _CUTS, _no_refit),
    _Row(("prune.activation_rounds", "prune.held_out"), _CUTS, _not_in_sequence),
    _Row(
        ("compressor.activation_rounds", "compressor.measured_in_sequence"),
        _JUDGES,
        _candidates_not_in_sequence,
    ),
    _Row(("compressor.sequential_images",), _JUDGES, _all_images),
    _Row(
        ("profile.points", "profile.fit", "profile.held_out"),
        frozenset({"search", "proxies", "verify"}),
        _profiled,
        new=True,
    ),
    _Row(
        tuple(f"quantize.{name}" for name in _OF_QUANTIZE),
        _QUANTIZE,
        _quantizes_nothing,
    ),
    _Row(
        tuple(
            f"quantize.{name}"
            for name in ("ranges", "percentile", "rounding", "bias_correction", "sensitivity_images")
        ),
        _QUANTIZE,
        _halves,
    ),
    _Row(("quantize.epochs", "quantize.lr"), _QUANTIZE, _quantizes_untrained),
    _Row(("quantize.percentile",), _QUANTIZE, _no_percentile),
    _Row(
        tuple(f"finetune.{name}" for name in _OF_FLOATS),
        _QUANTIZE,
        _trains_in_its_own_way,
        new=True,
    ),
    _Row(
        (*SINGLE, *LISTS, "budget.kind", "budget.round_to", "budget.min_preserve_ratio"),
        _SPARSIFY,
        partial(
            _single_weights,
            others=UNDER_BUDGET | {"plan"},
            instead="leaves the shares of the weights in sparsify.densities",
        ),
    ),
    _Row(
        ("prune", *(f"compressor.{name}" for name in _OF_CANDIDATES)),
        _SPARSIFY,
        partial(
            _single_weights,
            others=CUTTING,
            instead="prunes single weights, by sparsify.order; compressor.exclude leaves layers whole",
        ),
    ),
    _Row(
        ("workers.count", "workers.threads", "workers.timeout"),
        _SPARSIFY,
        partial(_single_weights, others=SEARCHING | {"plan"}, instead="judges in this process"),
    ),
    _Row(("budget.round_to",), frozenset({"prune", "compare"}), _other_multiple),
)
"""Of settings that several rows name the first one tells."""
