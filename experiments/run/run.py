"""One run: its configuration, its folder, and what stages share, built when first asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from amc import data as datasets
from amc.budget.budget import Budget, Cost, check_ratio, get_fit, make_budget
from amc.budget.widths import WidthSpace, width_space
from amc.candidate.evaluator import Compressor
from amc.candidate.memo import Memo
from amc.candidate.settings import CompressorSettings, fingerprint
from amc.cost.closed_form import BilinearCost, macs_cost, params_cost
from amc.cost.constant import with_other_macs
from amc.cutting.slicing import shaped
from amc.data import Splits, check_labels
from amc.errors import AmcError, first_line
from amc.export import get_format
from amc.files import atomic_write_json
from amc.graph.groups import Graph, exclude_groups
from amc.graph.trace import trace
from amc.latency import Backend, RemoteBackend
from amc.latency.prediction.model import LatencyModel
from amc.models import ModelSpec, build
from amc.models.checkpoint import load_into, load_state_dict, save_safetensors
from amc.scoring.precision import chosen_precision
from amc.scoring.run import outputs
from amc.strategy import GroupWidth, Strategy
from amc.training.settings import EpochRecord, TrainSettings
from amc.workers import WorkerSettings
from envs import Reward, get_reward
from experiments.config import stages
from experiments.config.agents import check_agent, check_search, check_sparsify
from experiments.config.budgets import KINDS, asked_budgets, single_budget
from experiments.config.runtimes import backend_of, check_measuring
from experiments.config.schema import Config, TrainConfig
from experiments.run.provenance import provenance, stage_commits
from experiments.run.trackers import Tracker, make_tracker

DENSE = "dense.safetensors"
LATENCY_MODEL = "latency_model.json"
PRUNED_STAGES = ("finetune", "compare", "evaluate", "export", "benchmark", "serve")
"""Stages whose records are about the pruned network."""
T = TypeVar("T")


def shared(build: Callable[[Run], T]) -> cached_property[T]:
    """Like ``cached_property``; what the run of one of several budgets takes from the run of them all."""

    @wraps(build)
    def value(run: Run) -> T:
        return build(run) if run.parent is None else getattr(run.parent, build.__name__)

    return cached_property(value)


class Run:
    """What the stages of one run share.

    Args:
        config: the checked configuration.
        folder: the run folder; made if need be.
        parent: the run of several budgets that this one, of a single budget, is a part of (``for_budget``).

    Raises:
        AmcError: the folder cannot be written.
    """

    def __init__(self, config: Config, folder: Path, parent: Run | None = None) -> None:
        self.config = config
        self.folder = folder
        self.parent = parent
        self._compressor: Compressor | None = None
        try:
            (folder / "stages").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AmcError(f"run_dir={folder} cannot be made: {error.strerror}") from error
        if not os.access(folder, os.W_OK):
            raise AmcError(f"run_dir={folder} is not writable")
        if not 0 <= config.seed < 2**32:
            raise AmcError(f"seed is {config.seed}; expected a number from 0 to {2**32 - 1}")
        if config.threads is not None:
            if config.threads < 1:
                raise AmcError(f"threads is {config.threads}; expected at least 1")
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)

    def check(self) -> None:
        """Find what is wrong with the configuration before any work is done.

        Raises:
            AmcError: an impossible setting, or a budget that no allowed network meets.
        """
        config = self.config
        stages.check_names(config.stages)
        self.settings()
        self.workers()
        if config.model.start is not None and self.comes_trained:
            raise AmcError(
                f"model.start={config.model.start} is where a training starts, but model.checkpoint or "
                "model.pretrained gives a trained network; use one of them"
            )
        check_agent(config.agent, config.compressor.order)
        _ = self.reward
        get_fit(config.budget.fit)
        for kind, ratio in asked_budgets(config.budget):
            check_ratio(kind, ratio)
        for section in (config.train, config.finetune):
            TrainSettings(**asdict(section))
        if config.prune.activation_rounds < 0:
            raise AmcError(
                f"prune.activation_rounds is {config.prune.activation_rounds}; expected 0 (none) or more"
            )
        if not 0 <= config.prune.held_out <= 0.5:
            raise AmcError(
                f"prune.held_out is {config.prune.held_out}; expected a share of the images, 0 to 0.5"
            )
        for name in config.export.formats:
            get_format(name)
        check_measuring(config)
        _ = self.splits
        if "search" in config.stages:
            check_search(config.agent, self.reward)
            self._check_outputs()
            for kind, ratio in asked_budgets(config.budget):
                if kind != "latency" or self.profiled:  # what is not measured yet is checked by the search
                    self._budget(kind, ratio).check_feasible(self.space)
        if "sparsify" in config.stages:
            check_sparsify(config.sparsify, config.agent, self.reward)
            self._check_classifies("sparsify")
        if "profile" in self.stages and not self.profiled:
            self.available_backend()

    def _check_outputs(self) -> None:
        if self.reward.needs_logits and not self.graph.classifies:
            raise AmcError(
                f"reward={self.config.reward} needs a network that returns one tensor (N, classes); "
                f"{self.spec.name} does not: reward=likeness compares what it returns with the dense network"
            )

    def _check_classifies(self, stage: str) -> None:
        if not self.graph.classifies:
            raise AmcError(f"stage {stage} needs a classifier; {self.spec.name} does not return logits")

    def for_budget(self, kind: str, ratio: float, folder: Path) -> Run:
        """Return the run of one budget, in a folder of its own; it shares this run's data and compressor.

        The stages that ask for no budget stay with this run.
        """
        own: dict[str, Any] = {"kind": kind, f"{kind}_ratio": ratio, **{f"{k}_ratios": [] for k in KINDS}}
        config = replace(
            self.config,
            stages=[name for name in self.stages if name not in stages.WITHOUT_BUDGET],
            run_dir=str(folder),
            budget=replace(self.config.budget, **own),
        )
        return Run(config, folder, parent=self)

    @property
    def stages(self) -> list[str]:
        """The stages of the run, with those that its budgets need besides."""
        kinds = [kind for kind, _ in asked_budgets(self.config.budget)]
        return stages.with_latency(self.config.stages, kinds, self.profiled)

    @property
    def top(self) -> Run:
        """The run of the whole job: this one, or the one that it is a part of."""
        return self if self.parent is None else self.parent

    @cached_property
    def device(self) -> torch.device:
        """The device that trains and searches."""
        if self.config.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.config.device)
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = first_line(error)
            raise AmcError(f"device={self.config.device} cannot be used: {reason}") from error
        return device

    @shared
    def splits(self) -> Splits:
        """The data set."""
        options = {f.name: getattr(self.config.data, f.name) for f in fields(self.config.data)}
        return datasets.build(options.pop("name"), **options, seed=self.config.seed)

    @cached_property
    def reward(self) -> Reward:
        """The score of an episode."""
        return get_reward(self.config.reward)

    @cached_property
    def tracker(self) -> Tracker:
        """Where metrics go besides the run folder."""
        return make_tracker(self.config, self.folder)

    @cached_property
    def spec(self) -> ModelSpec:
        """What the dense network is built from."""
        model = self.config.model
        return ModelSpec(
            model.name, self.splits.num_classes, self.splits.input_shape, tuple(model.kwargs.items())
        )

    def fresh_model(self) -> nn.Module:
        """Build the dense network with its initial (or downloaded) weights; other draws stay."""
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            return build(self.spec, trust_dotted_path=True, pretrained=self.config.model.pretrained)

    @property
    def comes_trained(self) -> bool:
        """Whether the configuration names weights for the dense network."""
        return self.config.model.checkpoint is not None or self.config.model.pretrained

    @shared
    def dense(self) -> nn.Module:
        """The trained dense network, in eval mode on the CPU; kept in the run folder."""
        model = self.fresh_model()
        checkpoint, stored = self.config.model.checkpoint, self.folder / DENSE
        if checkpoint is not None:
            load_into(model, load_state_dict(checkpoint), checkpoint)
        elif stored.exists():
            load_into(model, load_state_dict(stored), str(stored))
        elif not self.config.model.pretrained:
            raise AmcError(
                f"{self.folder} has no trained dense network ({DENSE}): run stages=[train] on it first, or "
                "give model.checkpoint=FILE"
            )
        model.eval()
        found = outputs(model, torch.zeros(1, *self.splits.input_shape), 1)
        if self.graph.classifies:
            check_labels(self.splits.search_val.labels, found.shape[1])
        if not stored.exists() or self.comes_trained:
            save_safetensors(model.state_dict(), stored)
        return model

    @shared
    def graph(self) -> Graph:
        """The channel groups, less those that the configuration leaves out; no trained weights are needed."""
        config = self.config.compressor
        model = self.fresh_model()
        graph = trace(model, torch.zeros(1, *self.splits.input_shape))
        graph = exclude_groups(
            graph, config.exclude, prune_coupled=config.prune_coupled, max_inputs=config.max_inputs
        )
        return with_other_macs(graph, model)

    @shared
    def params(self) -> BilinearCost:
        """Parameters at any widths."""
        return params_cost(self.graph, self.fresh_model())

    @cached_property
    def space(self) -> WidthSpace:
        """The widths that groups may take."""
        budget = self.config.budget
        return width_space(
            self.graph.group_names,
            self.graph.dense_widths,
            round_to=budget.round_to,
            min_preserve_ratio=budget.min_preserve_ratio,
        )

    @cached_property
    def budget(self) -> Budget:
        """The limit on the widths."""
        return self._budget(*single_budget(self.config.budget))

    def _budget(self, kind: str, ratio: float | None) -> Budget:
        return make_budget(
            kind,
            ratio,
            self._cost(kind),
            self.graph.dense_widths,
            enforced=self.reward.enforces_budget,
            fit=get_fit(self.config.budget.fit),
        )

    def _cost(self, kind: str) -> Cost:
        match kind:
            case "macs":
                return macs_cost(self.graph)
            case "params":
                return self.params
            case _:
                return self.latency_model

    @property
    def latency_model_path(self) -> Path:
        """Where stage ``profile`` leaves the latency model of the whole job."""
        return self.top.folder / LATENCY_MODEL

    @property
    def profiled(self) -> bool:
        """Whether there is a latency model."""
        return self.latency_model_path.exists()

    @shared
    def latency_model(self) -> LatencyModel:
        """Predicted milliseconds at any widths, from stage ``profile``."""
        path = self.require(LATENCY_MODEL, "profile")
        try:
            data = json.loads(path.read_text())
        except ValueError as error:
            raise AmcError(f"{path} is damaged ({error}): run stages=[profile] again") from error
        model, config = LatencyModel.from_json(data, self.graph, str(path)), self.config.profile
        measured = (model.target.runtime, model.target.batch, model.target.threads)
        if measured != (asked := (config.backend, config.batch, config.threads)):
            raise AmcError(
                f"{path} is about {_target(*measured)}, the configuration asks for {_target(*asked)}: run "
                "stages=[profile] again"
            )
        return model

    def available_backend(self) -> Backend | RemoteBackend:
        """Return the runtime that latency budgets are about.

        Raises:
            AmcError: it is unknown, or does not run here.
        """
        backend = backend_of(self.config.profile.backend, self.config.latency)
        if (reason := backend.available()) is not None:
            raise AmcError(f"profile.backend={backend.name} cannot be measured here: {reason}")
        return backend

    def settings(self) -> CompressorSettings:
        """How candidates are made."""
        config = self.config.compressor
        given = {f.name: getattr(config, f.name) for f in fields(CompressorSettings)}
        return CompressorSettings(**{**given, "precision": chosen_precision(config.precision, self.device)})

    def workers(self) -> WorkerSettings:
        """Who evaluates candidates."""
        return WorkerSettings(**asdict(self.config.workers))

    @shared
    def fingerprint(self) -> str:
        """Hash of all that determines an evaluation."""
        return fingerprint(self.dense, self.graph, self.splits.fingerprint, self.settings())

    def compressor(self, *, progress: Any = None) -> Compressor:
        """Return the physics, built when first asked for; evaluations are kept in ``evaluations.jsonl``.

        All stages and all budgets of a job share it. A stage may close it: it opens its file again.
        """
        if self.parent is not None:
            return self.parent.compressor(progress=progress)
        if self._compressor is None:
            self._compressor = Compressor(
                self.dense,
                self.graph,
                self.splits.calibration,
                self.splits.search_val,
                self.settings(),
                memo=Memo(self.folder / "evaluations.jsonl", self.fingerprint),
                device=self.device,
                progress=progress,
            )
        return self._compressor

    def release(self) -> None:
        """Give the compressor's memory back, if it is this run's own."""
        if self._compressor is not None:
            self._compressor.close()
            self._compressor = None

    def strategy(self) -> Strategy:
        """Read the strategy that is named, or the one that the search left in the run folder."""
        path = Path(self.config.strategy) if self.config.strategy else self.require("strategy.json", "search")
        return Strategy.load(path)

    def widths_of(self, strategy: Strategy) -> tuple[int, ...]:
        """Return a strategy's widths for this run's channel groups."""
        return strategy.widths_for(self.graph.group_names, self.graph.dense_widths)

    def make_strategy(self, widths: tuple[int, ...], **facts: Any) -> Strategy:
        """Describe widths of this run's network as a strategy."""
        dense = self.graph.dense_widths
        macs = macs_cost(self.graph)
        groups = zip(self.graph.group_names, dense, widths, strict=True)
        return Strategy(
            groups=tuple(GroupWidth(name, full, kept) for name, full, kept in groups),
            macs_ratio=macs(widths) / macs(dense),
            params_ratio=self.params(widths) / self.params(dense),
            seed=self.config.seed,
            model=self.spec.to_json(),
            budget={
                "kind": self.budget.kind,
                "ratio": self.budget.ratio,
                "enforced": self.budget.enforced,
                "fit": self.budget.fit,
                "round_to": self.config.budget.round_to,
                "min_preserve_ratio": self.config.budget.min_preserve_ratio,
            },
            provenance=facts,
        )

    def pruned(self, weights: str) -> nn.Module:
        """Load the pruned network of this run from one of its weight files."""
        path = self.require(weights, "prune")
        strategy = Strategy.load(self.require("strategy.json", "search"))
        model = shaped(self.fresh_model(), self.splits.input_shape, strategy)
        load_into(model, load_state_dict(path), str(path))
        return model.eval()

    def require(self, name: str, stage: str) -> Path:
        """Return a file of the run folder.

        Raises:
            AmcError: it is not there; says which stage makes it.
        """
        path = self.folder / name
        if not path.exists():
            raise AmcError(f"{self.folder} has no {name}: run stages=[{stage}] on it first")
        return path

    def train_settings(self, config: TrainConfig) -> TrainSettings:
        """Turn a training section of the configuration into settings."""
        return TrainSettings(**asdict(config))

    def log_epochs(self, prefix: str) -> Callable[[EpochRecord], None]:
        """Return what sends the epochs of a training to the tracker."""

        def log(record: EpochRecord) -> None:
            metrics = {f"{prefix}/loss": record.loss, f"{prefix}/val_top1": record.val_top1}
            self.tracker.log(metrics, record.epoch)

        return log

    def record(self, stage: str, facts: dict[str, Any]) -> None:
        """Write what a stage found, and bring the provenance up to date."""
        origin = provenance(self)
        origin["stage_commits"] = stage_commits(self.folder, stage, origin["commit"])
        atomic_write_json(self._record_of(stage), facts)
        atomic_write_json(self.folder / "provenance.json", origin)

    def recorded(self, stage: str) -> dict[str, Any] | None:
        """Return what a stage found, if it has been run."""
        path = self._record_of(stage)
        if not path.exists():
            return None
        try:
            facts = json.loads(path.read_text())
        except ValueError as error:
            raise AmcError(f"{path} is damaged ({error}): run stages=[{stage}] again") from error
        if not isinstance(facts, dict):
            raise AmcError(f"{path} holds no JSON object: run stages=[{stage}] again")
        return facts

    def forget(self, *names: str) -> None:
        """Remove the records of stages (by name) and files of the run folder that no longer hold."""
        for name in names:
            (self.folder / name if "." in name else self._record_of(name)).unlink(missing_ok=True)

    def forget_pruned(self) -> None:
        """Remove what was made of another strategy than the present one."""
        self.forget("prune", "pruned.safetensors", "model.safetensors", *PRUNED_STAGES)

    def _record_of(self, stage: str) -> Path:
        return self.folder / "stages" / f"{stage}.json"


def _target(runtime: str, batch: int, threads: int) -> str:
    return f"{runtime} (batch {batch}, {threads} thread{'s' if threads > 1 else ''})"
