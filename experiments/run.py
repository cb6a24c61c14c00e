"""One run: its configuration, its folder, and what stages share, built when first asked for."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amc import data as datasets
from amc.budget import Budget, WidthSpace, make_budget, width_space
from amc.checkpoint import load_into, load_state_dict, save_safetensors
from amc.compressor import Compressor, CompressorSettings, fingerprint
from amc.cost import macs_cost, params_cost
from amc.data import LabelledImages, Splits, check_labels
from amc.errors import AmcError
from amc.evaluation import logits
from amc.files import atomic_write_json
from amc.finetuning import TrainSettings
from amc.graph import Graph, exclude_groups, trace
from amc.loading import shaped
from amc.memo import Memo
from amc.models import ModelSpec, build
from amc.strategy import Strategy
from envs import Reward, get_reward
from experiments.provenance import provenance
from experiments.schema import Config, TrainConfig
from experiments.trackers import Tracker, make_tracker

DENSE, PRUNED, FINAL = "dense.safetensors", "pruned.safetensors", "model.safetensors"


class Run:
    """What the stages of one run share.

    Args:
        config: the checked configuration.
        folder: the run folder; made if need be.

    Raises:
        AmcError: the folder cannot be written.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self.config = config
        self.folder = folder
        try:
            (folder / "stages").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AmcError(f"run_dir={folder} cannot be made: {error.strerror}") from error
        if not os.access(folder, os.W_OK):
            raise AmcError(f"run_dir={folder} is not writable")
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)

    @cached_property
    def device(self) -> torch.device:
        """The device that trains and searches."""
        if self.config.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.config.device)
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().split("\n", 1)[0]
            raise AmcError(f"device={self.config.device} cannot be used: {reason}") from error
        return device

    @cached_property
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
        """Build the dense network with its initial (or downloaded) weights."""
        torch.manual_seed(self.config.seed)
        return build(self.spec, trust_dotted_path=True, pretrained=self.config.model.pretrained)

    @property
    def comes_trained(self) -> bool:
        """Whether the configuration names weights for the dense network."""
        return self.config.model.checkpoint is not None or self.config.model.pretrained

    @cached_property
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
        outputs = logits(model, torch.zeros(1, *self.splits.input_shape), 1)
        check_labels(self.splits.search_val.labels, outputs.shape[1])
        if not stored.exists() or self.comes_trained:
            save_safetensors(model.state_dict(), stored)
        return model

    @cached_property
    def graph(self) -> Graph:
        """The channel groups of the dense network."""
        return self.trace(self.dense)

    def trace(self, model: nn.Module) -> Graph:
        """Find the channel groups of ``model``, less those that the configuration leaves out."""
        config = self.config.compressor
        graph = trace(model, torch.zeros(1, *self.splits.input_shape))
        return exclude_groups(graph, config.exclude, prune_coupled=config.prune_coupled)

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
        config = self.config.budget
        costs = {"macs": macs_cost(self.graph), "params": params_cost(self.graph, self.dense)}
        ratios = {"macs": config.macs_ratio, "params": config.params_ratio}
        if config.kind not in costs:
            raise AmcError(f"budget.kind is {config.kind!r}; expected one of {', '.join(costs)}")
        enforced = self.reward.enforces_budget
        return make_budget(
            config.kind, ratios[config.kind], costs[config.kind], self.graph.dense_widths, enforced=enforced
        )

    def compressor(
        self, *, memo: bool = False, images: LabelledImages | None = None, progress: Any = None
    ) -> Compressor:
        """Build the physics; with ``memo``, evaluations are kept in ``evaluations.jsonl``."""
        config = self.config.compressor
        settings = CompressorSettings(**{f.name: getattr(config, f.name) for f in fields(CompressorSettings)})
        known = None
        if memo:
            mark = fingerprint(self.dense, self.graph, self.splits.fingerprint, settings)
            known = Memo(self.folder / "evaluations.jsonl", mark)
        return Compressor(
            self.dense,
            self.graph,
            self.splits.calibration.images,
            images if images is not None else self.splits.search_val,
            settings,
            memo=known,
            device=self.device,
            progress=progress,
        )

    def strategy(self) -> Strategy:
        """Read the strategy that is named, or the one that the search left in the run folder."""
        path = Path(self.config.strategy) if self.config.strategy else self.require("strategy.json", "search")
        return Strategy.load(path)

    def widths_of(self, strategy: Strategy) -> tuple[int, ...]:
        """Return a strategy's widths for this run's channel groups."""
        return strategy.widths_for(self.graph.group_names, self.graph.dense_widths)

    def make_strategy(self, widths: tuple[int, ...], **facts: Any) -> Strategy:
        """Describe widths of this run's network as a strategy."""
        from amc.strategy import GroupWidth

        dense = self.graph.dense_widths
        macs, params = macs_cost(self.graph), params_cost(self.graph, self.dense)
        groups = zip(self.graph.group_names, dense, widths, strict=True)
        return Strategy(
            groups=tuple(GroupWidth(name, full, kept) for name, full, kept in groups),
            macs_ratio=macs(widths) / macs(dense),
            params_ratio=params(widths) / params(dense),
            seed=self.config.seed,
            model=self.spec.to_json(),
            budget={
                "kind": self.budget.kind,
                "ratio": self.budget.ratio,
                "enforced": self.budget.enforced,
                "round_to": self.config.budget.round_to,
                "min_preserve_ratio": self.config.budget.min_preserve_ratio,
            },
            provenance=facts,
        )

    def pruned(self, weights: str) -> nn.Module:
        """Load the pruned network of this run from one of its weight files."""
        path = self.require(weights, "prune")
        model = shaped(
            self.fresh_model(), self.splits.input_shape, Strategy.load(self.folder / "strategy.json")
        )
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

    def record(self, stage: str, facts: dict[str, Any]) -> None:
        """Write what a stage found, and bring the provenance up to date."""
        atomic_write_json(self.folder / "stages" / f"{stage}.json", facts)
        atomic_write_json(self.folder / "provenance.json", provenance(self))

    def recorded(self, stage: str) -> dict[str, Any] | None:
        """Return what a stage found, if it has been run."""
        path = self.folder / "stages" / f"{stage}.json"
        return json.loads(path.read_text()) if path.exists() else None
