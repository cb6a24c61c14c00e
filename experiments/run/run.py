"""One run: a configuration, a folder and one budget on a problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from amc.models.checkpoint import load_into, load_state_dict
from amc.notes import note_once
from amc.reading import set_aside
from amc.scoring.run import in_eval
from amc.strategy import GroupWidth, Strategy
from amc.training.settings import TrainSettings
from amc.workers.settings import WorkerSettings
from envs import Reward, get_reward
from experiments.command.remembered import forget
from experiments.config import stages
from experiments.config.budgets import Ratios, asked_budgets, own_fields, single_budget
from experiments.config.runtimes import profile_settings
from experiments.config.schema import Config
from experiments.config.sections.library import TrainConfig
from experiments.run.episodes import read_episodes
from experiments.run.folder import MADE_OF, MADE_OF_PRUNED, RunFolder
from experiments.run.problem import Problem
from experiments.run.provenance import former_commands, provenance, stage_commits
from experiments.run.trackers import Tracker, make_tracker


class Run:
    """One run: a configuration, a folder and one budget on a problem; every stage receives it.

    Args:
        config: the checked configuration.
        folder: the run folder.
        problem: the network, the data and the evaluator, which all budgets of the job share.
        tracker: receives metrics; None starts the one of the configuration at its first use.

    Attributes:
        taken_up: stages that an earlier command has begun which did not end; their times are of the last.
    """

    def __init__(
        self, config: Config, folder: RunFolder, problem: Problem, tracker: Tracker | None = None
    ) -> None:
        self.config = config
        self.folder = folder
        self.problem = problem
        self._given_tracker = tracker
        self.taken_up: frozenset[str] = frozenset()
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
        if not self.problem.profiled:
            return False
        try:
            lacking = self.problem.latency_model.lacking(self.space)
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
        self.problem.take_profile()
        self.__dict__.pop("budget", None)  # its limit on the latency has the former one

    def reached(self, widths: tuple[int, ...]) -> dict[str, float]:
        """Return the kept share of each limited cost at widths, those of the strategy.

        Of the latency as stage ``verify`` measured it, of the bytes as stage ``quantize`` made them.
        """
        shares = self.budget.shares(widths)
        made = (self.recorded("quantize") or {}).get("size_ratio")
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
        verify, setup = self.folder.recorded("verify") or {}, self.latency_setup()
        on = {**setup, **verify.get("on", {})}  # records of earlier versions lack some or all of it
        if verify.get("widths") != list(widths) or not self._fits(verify):
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

    def latency_setup(self) -> dict[str, Any]:
        """Return what tells one latency from another: runtime, batch, threads, number format, host, device.

        Device and version of the runtime are those of the latency model.
        """
        config, target = self.config.profile, self.problem.latency_model.target
        own = {name: getattr(config, name) for name in ("backend", "batch", "threads", "int8")}
        about = {"device": target.device, "version": target.version}
        return {**own, "setup": self.problem.backend_setup(), **about}

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
        original, graph = self.problem.original.graph, self.problem.graph
        widths = strategy.widths_for(original.group_names, original.dense_widths)
        kept = dict(zip(original.group_names, widths, strict=True))
        return tuple(kept[name] for name in graph.group_names)

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
        graph = self.problem.original.graph
        return replace(strategy, **self._ratios(strategy.widths_for(graph.group_names, graph.dense_widths)))

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
        self.require_pruned(weights)
        strategy = Strategy.load(self.folder.require(self.folder.strategy, "search"))
        model = shaped(self.problem.original.fresh_model(), self.problem.splits.input_shape, strategy)
        load_into(model, load_state_dict(weights), str(weights))
        return in_eval(model)

    def require_pruned(self, weights: Path) -> None:
        """Make sure that a file of weights is of this run's dense network and strategy.

        Raises:
            FileError: it is missing, or of another network.
        """
        self.folder.require(weights, "prune")
        if not self.has_pruned:
            raise FileError(
                f"{weights} was cut from another dense network, at other widths, or for images of another "
                "size: run stages=[prune] again"
            )

    @property
    def has_pruned(self) -> bool:
        """Whether there is a pruned network of this run's dense network, strategy and size of images."""
        if not self.folder.pruned.exists():
            return False
        return self.recorded("prune") is not None or not self.folder.record_of("prune").exists()

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

    def recorded(self, stage: str) -> dict[str, Any] | None:
        """Return the facts that a stage found about this run's dense network and strategy, or None.

        A damaged record is set aside. A line is printed about one that is of another dense network, strategy
        or size of images: what was made of something else is not shown beside this run's results.

        Raises:
            FileError: a damaged record cannot be set aside.
        """
        try:
            facts = self.folder.recorded(stage)
        except FileError as error:
            set_aside(self.folder.record_of(stage), error)
            return None
        if facts is None or self._fits(facts):
            return facts
        note_once(
            f"{self.folder.record_of(stage)} is left out: it is about another dense network, strategy or "
            f"size of images; run stages=[{stage}] again"
        )
        return None

    def is_outdated(self, stage: str) -> bool:
        """Whether a stage has a record that is about another dense network, strategy or size of images."""
        try:
            facts = self.folder.recorded(stage)
        except FileError:  # which is told when the record is read
            return False
        return facts is not None and not self._fits(facts)

    def is_of_this_strategy(self, stage: str) -> bool:
        """Whether a stage has a record that tells that it is about this run's strategy and dense network.

        Records of earlier versions tell no strategy.
        """
        try:
            facts = self.folder.recorded(stage) or {}
        except FileError:  # which is told when the record is read
            return False
        made_of = facts.get(MADE_OF)
        return isinstance(made_of, dict) and "strategy" in made_of and self._fits(facts)

    def episodes(self) -> list[dict[str, Any]]:
        """Return the episodes of this run's search, also of one that was stopped.

        Those of another dense network are none: ``search.jsonl`` outlives a training and a schedule.

        Raises:
            FileError: ``search.jsonl`` is damaged.
        """
        return read_episodes(self.folder.search) if self._has_episodes() else []

    def require_episodes(self) -> list[dict[str, Any]]:
        """Return the episodes of this run's search.

        Raises:
            FileError: there is no search of this run's dense network, or it is damaged.
            AmcError: it was for other channel groups.
        """
        log = self.folder.require(self.folder.search, "search")
        if not self._has_episodes():
            raise FileError(
                f"{log} is of another dense network or size of images; expected a search of this run's: run "
                "stages=[search] again"
            )
        episodes = read_episodes(log)
        self.require_groups(episodes)
        return episodes

    def require_groups(self, episodes: Sequence[Mapping[str, Any]]) -> None:
        """Make sure that episodes of the search are about the channel groups that the run has now.

        Raises:
            AmcError: they are about others; of records of earlier versions only the number is known.
        """
        if not episodes:
            return
        names, count = list(self.problem.graph.group_names), len(episodes[0]["widths"])
        known: list[str] = (self.recorded("search") or {}).get("group_names", names)
        if count != len(names):
            told = f"{count} channel groups, the run has {len(names)}"
        elif known != names:
            told = f"other channel groups ({', '.join(sorted({*known} - {*names}))}) than the run has now"
        else:
            return
        raise AmcError(
            f"{self.folder.search} is about {told}: were settings changed since? Run stages=[search] again"
        )

    def _has_episodes(self) -> bool:
        """Whether there is a search of this run's dense network; one that was stopped has no record."""
        if not self.folder.search.exists():
            return False
        if self.folder.record_of("search").exists():
            return self.recorded("search") is not None
        if not self.folder.strategy.exists():
            return False
        found = Strategy.load(self.folder.strategy).provenance.get("fingerprint")
        return bool(found == self.problem.fingerprint)

    def _fits(self, facts: dict[str, Any]) -> bool:
        """Whether a record is about this run's dense network, strategy and size of images.

        Records of earlier versions do not say all of it, and are taken.
        """
        made_of = facts.get(MADE_OF)
        if not isinstance(made_of, dict):
            return True
        dense, strategy = made_of.get("dense"), made_of.get("strategy")
        if strategy is not None and strategy != self.folder.strategy_digest():
            return False
        if made_of.get("input", self._input) != self._input:
            return False
        return dense is None or not self.problem.has_dense or dense == self.problem.dense_digest

    @property
    def _input(self) -> str:
        """Channels, height and width of the images."""
        return "x".join(map(str, self.problem.splits.input_shape))

    def _made_of(self, stage: str) -> dict[str, str | None]:
        """Return what the facts of a stage are about: digests, and the size of the images.

        Weights have no size of images, so that ``train`` has none either.
        """
        found: dict[str, str | None] = {} if stage == "train" else {"input": self._input}
        if stage == "export":  # which does not load the dense network
            known = (self.folder.recorded("prune") or {}).get(MADE_OF)
            return {**known, **found} if isinstance(known, dict) else found
        if stage in ("train", *stages.WITH_DENSE):
            found["dense"] = self.problem.dense_digest
        if stage in ("prune", *MADE_OF_PRUNED):
            found["strategy"] = self.folder.strategy_digest()
        return found

    def judging(self) -> dict[str, Any]:
        """Return what the score of a network depends on beside its widths, and the limits that hold."""
        return {
            "reward": self.reward.name,
            "limits": {limit.kind: limit.ratio for limit in self.budget.limits},
            "fingerprint": self.problem.fingerprint,
        }

    def record(self, stage: str, facts: dict[str, Any]) -> None:
        """Write the facts that a stage found and what they are about, and update the provenance."""
        if made_of := self._made_of(stage):
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
    """Set torch's number of threads, and seed its global generator, from the configuration.

    Float32 on a GPU is float32: convolutions in TF32, PyTorch's default, differ by a thousandth, which is as
    much as two networks that are compared may differ.
    """
    torch.backends.cudnn.allow_tf32 = False
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
