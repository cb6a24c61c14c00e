"""One run: a configuration, a folder and one budget on a problem."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amc.budget.budget import Budget, Cost, get_fit, make_limit
from amc.budget.widths import WidthSpace, width_space
from amc.cost.closed_form import macs_cost
from amc.cutting.slicing import shaped
from amc.errors import AmcError, FileError
from amc.files import atomic_write_json
from amc.latency.prediction.model import LatencyModel
from amc.latency.prediction.settings import ProfileSettings
from amc.models.checkpoint import load_into
from amc.models.names import may_be_one
from amc.models.state_files import load_state_dict
from amc.notes import note_once
from amc.scoring.run import in_eval
from amc.seeds import seed_all
from amc.strategy import GroupWidth, Strategy
from amc.training.settings import TrainSettings
from amc.workers.settings import WorkerSettings
from envs import Reward, get_reward
from experiments.command.memory.identity import forget
from experiments.config import stages
from experiments.config.budgets import Ratios, asked_budgets, own_fields, single_budget
from experiments.config.runtimes import profile_settings
from experiments.config.schema import Config
from experiments.config.sections.library import TrainConfig
from experiments.run.folder import MADE_OF, RunFolder
from experiments.run.problem.problem import Problem
from experiments.run.provenance import former_commands, provenance, stage_commits
from experiments.run.records import Records
from experiments.run.trackers import Tracker, make_tracker


class Run:
    """One run: a configuration, a folder and one budget on a problem; every stage receives it.

    Args:
        config: the checked configuration.
        folder: the run folder.
        problem: the network, the data and the evaluator, which all budgets of the job share.
        tracker: receives metrics; None starts the one of the configuration at its first use.

    Attributes:
        records: what the folder tells about this run's dense network and strategy.
        taken_up: stages that an earlier command has begun which did not end; their times are of the last.
        looked_up: whether the stage at work has taken over results of an earlier command, so that its time is
            not that of all its work.
    """

    def __init__(
        self, config: Config, folder: RunFolder, problem: Problem, tracker: Tracker | None = None
    ) -> None:
        self.config = config
        self.folder = folder
        self.problem = problem
        self.records = Records(folder, problem)
        self._given_tracker = tracker
        self.taken_up: frozenset[str] = frozenset()
        self.looked_up = False
        self._made_strategy = False

    def for_budget(self, ratios: Ratios, path: Path) -> Run:
        """Return the run of one budget, in a folder of its own, on the same problem.

        It has the stages of this run that depend on a budget.

        Raises:
            AmcError: the folder cannot be created.
        """
        own: dict[str, Any] = own_fields(ratios)
        config = replace(
            self.config,
            stages=self.stages_under(ratios),
            run_dir=str(path),
            budget=replace(self.config.budget, **own),
        )
        return Run(config, RunFolder.made(path), self.problem)

    @property
    def stages(self) -> list[str]:
        """Names of the stages of the run, including those that a latency budget adds."""
        kinds = {kind for ratios in asked_budgets(self.config.budget) for kind in ratios}
        searches = "latency" in kinds and "search" in self.config.stages
        return stages.with_latency(self.config.stages, kinds, searches and self.profiled)

    def stages_under(self, ratios: Ratios) -> list[str]:
        """Return the names of the stages of one budget: ``verify`` only if that limits the latency."""
        left_out = {*stages.WITHOUT_BUDGET, *(() if "latency" in ratios else ("verify",))}
        return [name for name in self.stages if name not in left_out]

    @cached_property
    def reward(self) -> Reward:
        """The score of an episode."""
        return get_reward(self.config.reward)

    @cached_property
    def tracker(self) -> Tracker:
        """The tracker that receives metrics."""
        return self._given_tracker or make_tracker(self.config, self.folder.path)

    @cached_property
    def space(self) -> WidthSpace:
        """The widths that groups may take; floors are shares of the original network."""
        budget, graph, original = self.config.budget, self.problem.graph, self.problem.original.graph
        whole = dict(zip(original.group_names, original.dense_widths, strict=True))
        return width_space(
            graph.group_names,
            graph.dense_widths,
            round_to=budget.round_to,
            min_preserve_ratio=budget.min_preserve_ratio,
            whole=[whole[name] for name in graph.group_names],
        )

    @property
    def profiled(self) -> bool:
        """Whether there is a latency model of all allowed widths; one that is still to be measured is none.

        A line is printed about one of wider networks only. One that cannot be read counts: its reader says
        why.
        """
        if not self.problem.latency.profiled:
            return False
        try:
            lacking = self.problem.latency.model.lacking(self.space)
        except AmcError:
            return True
        if lacking is not None:
            note_once(f"{self.problem.folder.latency_model} is left out: it {lacking}")
        return lacking is None

    @cached_property
    def budget(self) -> Budget:
        """The limits on the widths."""
        return self.budget_of(single_budget(self.config.budget))

    def budget_of(self, ratios: Ratios) -> Budget:
        """Return the budget with a limit of each kind: a cost of its ratio times the dense cost.

        Raises:
            AmcError: there is no latency model of all allowed widths, and there is a limit on the latency.
        """
        dense = self.problem.graph.dense_widths
        return Budget(
            tuple(
                make_limit(
                    kind,
                    ratio,
                    self._cost(kind),
                    dense,
                    dense_cost=self.problem.original.dense_cost(kind),
                )
                for kind, ratio in ratios.items()
            ),
            enforced=self.reward.enforces_budget,
            fit=get_fit(self.config.budget.fit),
        )

    def _cost(self, kind: str) -> Cost:
        """Return the cost of any widths that a budget of ``kind`` limits."""
        cost = self.problem.cost(kind)
        if isinstance(cost, LatencyModel) and (lacking := cost.lacking(self.space)) is not None:
            raise FileError(f"{self.problem.folder.latency_model} {lacking}: run stages=[profile] again")
        return cost

    def take_profile(self) -> None:
        """From now on use the latency model that stage ``profile`` has just written."""
        self.problem.latency.take_profile()
        self.__dict__.pop("budget", None)  # its limit on the latency has the former one

    def reached(self, widths: tuple[int, ...]) -> dict[str, float]:
        """Return the kept share of each limited cost at widths, those of the strategy.

        Of the latency as stage ``verify`` measured it, of the bytes as stage ``quantize`` made them.
        """
        shares = self.budget.shares(widths)
        made = (self.records.read("quantize") or {}).get("size_ratio")
        if "size" in shares and made is not None:
            shares["size"] = made  # which later settings do not change
        if (measured := self.measured_latency(widths)) is not None:
            shares["latency"] = measured
        return shares

    def measured_latency(self, widths: tuple[int, ...]) -> float | None:
        """Return the share of the dense latency that stage ``verify`` measured at widths, or None.

        It is None, too, if the budget has no limit on the latency, or another runtime or device was measured
        than the latency model's; a line tells that.
        """
        if "latency" not in self.budget.shares(widths):
            return None
        verify, setup = self.folder.recorded("verify") or {}, self.problem.latency.described()
        on = {**setup, **verify.get("on", {})}  # records of earlier versions lack some or all of it
        if verify.get("widths") != list(widths) or not self.records.fits(verify):
            return None
        if on != setup:
            other = [name for name in setup if on[name] != setup[name]]
            told, wanted = (", ".join(f"{name} {own[name]}" for name in other) for own in (on, setup))
            note_once(
                f"{self.folder.record_of('verify')} does not count: it was measured with {told}, the latency "
                f"model has {wanted}"
            )
            return None
        measured: float = verify["measured_ratio"]
        return measured

    def workers(self) -> WorkerSettings:
        """Return the settings of the workers that evaluate candidates.

        Raises:
            AmcError: a setting is impossible, or a package is missing.
        """
        return WorkerSettings(**asdict(self.config.workers))

    def strategy(self) -> Strategy:
        """Read the strategy that the configuration names, else the one of the run folder.

        Once a stage has made a strategy of its own, it is that of the folder.

        Raises:
            FileError: it is missing or damaged.
        """
        if self.config.strategy and not self._made_strategy:
            return Strategy.load(Path(self.config.strategy))
        return Strategy.load(self.folder.require(self.folder.strategy, "search"))

    def take(self, strategy: Strategy) -> None:
        """Make a strategy that of the run folder; what was made of another one is removed first."""
        path = self.folder.strategy
        if not path.exists() or Strategy.load(path).groups != strategy.groups:
            self.folder.forget_pruned()
        self.counted(strategy).save(path)

    def made_strategy(self) -> None:
        """From now on the strategy is that of the run folder, whatever file the configuration names."""
        self._made_strategy = True
        if self.config.strategy:
            forget(self.folder.path, "strategy")

    def widths_of(self, strategy: Strategy) -> tuple[int, ...]:
        """Return a strategy's widths for this run's channel groups.

        Raises:
            FileError: the strategy is for another network.
        """
        widths = self._original_widths(strategy)
        kept = dict(zip(self.problem.original.graph.group_names, widths, strict=True))
        return tuple(kept[name] for name in self.problem.graph.group_names)

    def _original_widths(self, strategy: Strategy) -> tuple[int, ...]:
        """Return a strategy's widths for the groups of the original network.

        A line tells how many groups it leaves whole as it lacks them: it may be of a run that excluded them.

        Raises:
            FileError: the strategy is for another network.
        """
        graph = self.problem.original.graph
        widths = strategy.widths_for(graph.group_names, graph.dense_widths)
        lacking = len(set(graph.group_names) - {group.name for group in strategy.groups})
        if lacking:
            told, own = str(strategy.model.get("name", "")), self.problem.original.spec.name
            lacks = f"lacks {lacking} of the {len(widths)} channel groups"
            if told and not may_be_one(told, own):
                raise FileError(f"strategy of {told} {lacks} of {own}; it is for another network")
            note_once(f"the strategy {lacks}, which keep all channels")
        return widths

    def make_strategy(self, widths: tuple[int, ...], **facts: Any) -> Strategy:
        """Return widths of this run's network as a strategy, with ``facts`` as its provenance.

        Of a network that was cut before, it is the strategy that cuts the original network to these widths.
        Shares that ``facts`` has of other widths (``reached``) are left out.
        """
        facts.pop("reached", None)
        whole, graph = self.problem.original_widths(widths), self.problem.original.graph
        groups = zip(graph.group_names, graph.dense_widths, whole, strict=True)
        return Strategy(
            groups=tuple(GroupWidth(name, full, kept) for name, full, kept in groups),
            **self._ratios(whole),
            seed=self.config.seed,
            model=self.problem.spec.to_json(),
            budget={
                **self.budget.described(),
                "enforced": self.budget.enforced,
                "fit": self.budget.fit,
                "round_to": self.config.budget.round_to,
                "min_preserve_ratio": self.config.budget.min_preserve_ratio,
            },
            provenance={**facts, **self._reached(widths)},
        )

    def counted(self, strategy: Strategy) -> Strategy:
        """Return a strategy with the shares of this run's network, whatever the file says that it is from.

        The network may have other classes, and the file may have been changed by hand.

        Raises:
            FileError: the strategy is for another network.
        """
        return replace(strategy, **self._ratios(self._original_widths(strategy)))

    def _ratios(self, whole: tuple[int, ...]) -> dict[str, Any]:
        """Return the shares of the original network's MACs and parameters that widths of it keep."""
        original = self.problem.original
        dense, macs, params = original.graph.dense_widths, macs_cost(original.graph), original.params
        return {"macs_ratio": macs(whole) / macs(dense), "params_ratio": params(whole) / params(dense)}

    def _reached(self, widths: tuple[int, ...]) -> dict[str, Any]:
        """Return what widths keep of each cost, for the provenance of a strategy under several limits."""
        return {"reached": self.budget.shares(widths)} if len(self.budget.limits) > 1 else {}

    def pruned(self, weights: Path) -> nn.Module:
        """Load the pruned network of this run, in eval mode, from one of its weight files.

        Raises:
            FileError: the weights or the strategy are missing or damaged, or of another network.
        """
        self.records.require_pruned(weights)
        strategy = Strategy.load(self.folder.require(self.folder.strategy, "search"))
        model = shaped(self.problem.original.fresh_model(), self.problem.splits.input_shape, strategy)
        load_into(model, load_state_dict(weights), str(weights))
        return in_eval(model)

    def profile_settings(self) -> ProfileSettings:
        """Return the settings for measuring a latency model."""
        return profile_settings(self.config.profile)

    def train_settings(self, config: TrainConfig) -> TrainSettings:
        """Turn a training section of the configuration into settings."""
        return TrainSettings(**{each.name: getattr(config, each.name) for each in fields(TrainSettings)})

    def provenance(self) -> dict[str, Any]:
        """Return the facts that are needed to reproduce this run."""
        splits = self.problem.splits
        return provenance(
            seed=self.config.seed,
            data={"name": splits.name, "fingerprint": splits.fingerprint},
            device=str(self.problem.device),
        )

    def judging(self) -> dict[str, Any]:
        """Return what the score of a network depends on beside its widths, and the limits that hold."""
        return {
            "reward": self.reward.name,
            "limits": {limit.kind: limit.ratio for limit in self.budget.limits},
            "fingerprint": self.problem.fingerprint,
        }

    def record(self, stage: str, facts: dict[str, Any]) -> None:
        """Write the facts that a stage found and what they are about, and update the provenance."""
        if made_of := self.records.made_of(stage):
            facts = {**facts, MADE_OF: made_of}
        origin = self.provenance()
        origin["stage_commits"] = stage_commits(self.folder.path, stage, origin["commit"])
        origin |= former_commands(self.folder.path, stage, origin["command"])
        self.folder.record(stage, facts)
        atomic_write_json(self.folder.provenance, origin)


def open_run(config: Config, path: Path) -> Run:
    """Create the run folder, and return the run of a whole job.

    Raises:
        AmcError: the folder cannot be created or written to.
    """
    folder = RunFolder.made(path)
    return Run(config, folder, Problem(config, folder))


def set_up_process(config: Config) -> None:
    """Set torch's number of threads, and seed the global generators, from the configuration.

    Float32 on a GPU is float32: convolutions in TF32, PyTorch's default, differ by a thousandth, which is as
    much as two networks that are compared may differ.
    """
    torch.backends.cudnn.allow_tf32 = False
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    seed_all(config.seed)
