"""One network, its images and one budget: environments for any agent, and pruning of the best network."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property, partial
from operator import index
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from agents import Episode
from amc.budget.budget import Budget, Cost, get_fit, make_limit
from amc.budget.widths import WidthSpace, width_space
from amc.candidate.error_curves import ErrorCurves
from amc.candidate.evaluator import channel_evaluator
from amc.candidate.pruning import prune
from amc.candidate.settings import CandidateSettings, PruneSettings
from amc.cost.constant import with_other_macs
from amc.cost.exported import ExportedSize, check_excluded
from amc.cutting.exactness import prove
from amc.data.mixing import mixed
from amc.data.picking import FEWEST_JUDGING
from amc.errors import AmcError, SettingError
from amc.graph.groups import Graph, exclude_groups
from amc.graph.layers import noise_image
from amc.graph.trace import trace
from amc.importance.global_ranking import Importance, global_scores
from amc.latency.prediction.settings import ProfileSettings
from amc.models import ModelSpec
from amc.models.registry import usable
from amc.progress import progress
from amc.quantization.settings import QuantizeSettings
from amc.result import Evaluation
from amc.scoring.precision import without_autocast, without_tf32
from amc.scoring.run import copied, in_eval, outputs, usable_device
from amc.seeds import draws_kept
from amc.strategy import GroupWidth, Strategy
from envs.observation import group_features
from envs.reward import number_of
from experiments.config.agents import check_agent, check_search, episodes_of, refuse_unseen
from experiments.config.arena import Acts, Arena, PruningEnv
from experiments.config.presets import agent_preset
from experiments.config.searching import searched
from experiments.library.arguments import (
    Score,
    check_channels,
    check_read,
    limits_of,
    on_cpu,
    reward_of,
    settings_of,
    whole_number,
    whole_seed,
)
from experiments.library.compressed import Compressed
from experiments.library.images import collect_images
from experiments.library.latency import MeasuredLatency
from experiments.library.stepping import OneProcessNetwork

_log = logging.getLogger("amc")


@contextmanager
def _as_the_command() -> Iterator[None]:
    """Compute as the command does, whatever the caller has switched on or off.

    Gradients, which proofs and agents need, are computed, and layers in the types of their tensors.
    """
    with torch.inference_mode(False), torch.enable_grad(), without_autocast():
        yield


class CompressionTask:
    """One network, its images and one budget: environments for any agent, and pruning of the best network.

    >>> task = amc.CompressionTask(model, calibration, validation, macs_ratio=0.5)      # doctest: +SKIP
    >>> env = task.env()                                                                 # doctest: +SKIP
    >>> stable_baselines3.TD3("MlpPolicy", env).learn(50 * env.episode_length)           # doctest: +SKIP
    >>> result = task.result()                                                           # doctest: +SKIP

    Args:
        model: the trained dense network; it is read and never changed.
        calibration: normalised training images for the refit and the channel order: a tensor (N, C, H, W), a
            pair (images, labels), a data set or a loader. A few hundred are enough. Parts of them should have
            every class: images that come class by class, or without labels, are put in a mixed order. Only
            ``order="taylor"`` in the settings and ``agent="global_taylor"`` need labels.
        validation: held-out images that score candidates, in the same forms, with labels if there are any; in
            a mixed order, too.
        macs_ratio, params_ratio, size_ratio, latency_ratio: limits as shares of the dense cost, in (0, 1]; at
            least one is given, and all that are given hold, unless the reward enforces no budget. The size is
            that of the weights as ``quantize`` stores them, as a share of the dense ones in float32. Latency
            is measured on this machine.
        quantize: how weights will be stored, for ``size_ratio`` alone; by default as bytes (``static_int8``).
        reward: the score of a candidate: a name of ``envs.REWARDS`` or a function of its ``Evaluation``. By
            default ``accuracy`` with labels, else ``likeness`` to the dense network's outputs.
            ``accuracy_macs`` and ``accuracy_params`` enforce no budget: whatever returns an environment or a
            network then logs a line.
        score: replaces the reward: a user's own score of the network, such as a mean average precision. It
            gets a copy in eval mode, without gradients, with which it may do anything.
        round_to: widths are multiples of this number of channels.
        min_preserve_ratio: smallest share of a group that is kept, in (0, 1].
        exclude: names of groups that keep all channels, or one name; ``*`` and ``?`` are allowed.
        prune_coupled: whether groups that several layers produce together (residual streams) are pruned.
        settings: how candidates are made and scored.
        pruning: how the winner is refitted.
        runtime: runtime that measures, a name in ``amc.latency.BACKENDS``, for ``latency_ratio`` alone; by
            default ``onnxruntime``.
        profile: how its latency is measured, for ``latency_ratio`` alone.
        seed: seed of searches, unless one is given to ``search``, and of the networks that are measured for a
            latency budget.
        device: device that runs the candidates.
        progress: whether progress bars are drawn on a terminal.

    Attributes:
        graph: the channel groups of the network.
        space: the widths that each group may take.
        reward: the score of a candidate.

    Raises:
        SettingError: a setting is impossible, or no allowed network meets the budget.
        NotPrunableError: the network cannot be cut exactly.
        UnavailableError: a latency budget needs a runtime that is not available.
    """

    @_as_the_command()
    def __init__(
        self,
        model: nn.Module,
        calibration: Any,
        validation: Any,
        *,
        macs_ratio: float | None = None,
        params_ratio: float | None = None,
        size_ratio: float | None = None,
        latency_ratio: float | None = None,
        quantize: QuantizeSettings | None = None,
        reward: str | Callable[[Evaluation], float] | None = None,
        score: Score | None = None,
        round_to: int = 4,
        min_preserve_ratio: float = 0.2,
        exclude: str | Sequence[str] = (),
        prune_coupled: bool = True,
        settings: CandidateSettings | None = None,
        pruning: PruneSettings | None = None,
        runtime: str | None = None,
        profile: ProfileSettings | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
        progress: bool = True,
    ) -> None:
        self._ratios = limits_of(macs=macs_ratio, params=params_ratio, size=size_ratio, latency=latency_ratio)
        self._quantize = settings_of("quantize", quantize, QuantizeSettings)
        self._pruning = settings_of("pruning", pruning, PruneSettings)
        settings = settings_of("settings", settings, CandidateSettings)
        measuring = settings_of("profile", profile, ProfileSettings)
        check_read(self._ratios, quantize=quantize, profile=profile, runtime=runtime)
        self._seed = whole_seed(seed)
        self._process = os.getpid()
        self._score, self._progress = score, progress
        given, known = collect_images(calibration, "calibration")
        judging, labelled = collect_images(validation, "validation")
        if len(judging) < FEWEST_JUDGING:
            raise SettingError(f"validation holds one image; expected {FEWEST_JUDGING} or more to judge on")
        check_channels(given.images, judging.images)
        self._calibration_has_labels = known
        if settings.order == "taylor":
            self._check_labels("order=taylor")
        self._calibration, judging = mixed(given, labelled=known), mixed(judging, labelled=labelled)
        model = on_cpu(usable(model))
        with torch.random.fork_rng():
            self.graph = _proved(model, judging.images[:1], exclude, prune_coupled)
        self.reward = reward_of(reward, score, labelled and self.graph.classifies)
        self.space: WidthSpace = width_space(
            self.graph.group_names,
            self.graph.dense_widths,
            round_to=whole_number("round_to", round_to),
            min_preserve_ratio=min_preserve_ratio,
        )
        with without_tf32(), self._bar("calibrate", "image", len(self._calibration)) as bar:
            self._evaluator = channel_evaluator(
                model,
                self.graph,
                self._calibration,
                judging,
                settings,
                labelled=labelled,
                device=usable_device(device),
                progress=bar.update,
            )
        self._latency = MeasuredLatency(
            self._evaluator.builder.dense,
            self.graph,
            self.space,
            "onnxruntime" if runtime is None else runtime,
            measuring,
            self._seed,
        )
        self._curves = ErrorCurves(self._evaluator)
        self._scores: dict[tuple[int, ...], float] = {}
        self._found: dict[tuple[int, ...], float] = {}
        self.budget.check_feasible(self.space)

    @cached_property
    def budget(self) -> Budget:
        """The limits on the widths; one on the latency measures the network's layers at the first use."""
        dense = self.graph.dense_widths
        return Budget(
            tuple(
                make_limit(kind, ratio, self._cost(kind), dense, dense_cost=self._dense_cost(kind))
                for kind, ratio in self._ratios.items()
            ),
            enforced=self.reward.enforces_budget,
            fit=get_fit("scale"),
        )

    def _cost(self, kind: str) -> Cost:
        match kind:
            case "macs":
                return self._evaluator.builder.macs
            case "params":
                return self._evaluator.builder.params
            case "size":
                check_excluded(self.graph, self._evaluator.builder.dense, self._quantize)
                return self._exported_size.stored(self._quantize)
            case _:
                with self._bar("profile", "network", None) as bar:
                    return self._latency.model(bar)

    @cached_property
    def _exported_size(self) -> ExportedSize:
        """Bits of the exported weights at any widths, under any settings of a quantization."""
        return ExportedSize(self.graph, self._evaluator.builder.dense)

    def _dense_cost(self, kind: str) -> float | None:
        """Return the dense cost where it is not that of the dense widths: bits as float32."""
        if kind != "size":
            return None
        return self._exported_size.as_floats()(self.graph.dense_widths)

    def macs(self, widths: Sequence[int]) -> int:
        """Return the multiply-adds of one image at ``widths``.

        Raises:
            SettingError: there is not one possible width for each group.
        """
        return self._evaluator.macs(self._checked(widths))

    @_as_the_command()
    def evaluate(self, widths: Sequence[int]) -> Evaluation:
        """Return the scores of a candidate; ``result`` prunes the best one that the budget allows.

        Args:
            widths: kept channels of every group, in forward order.

        Raises:
            SettingError: there is not one possible width for each group.
            AmcError: the score or the reward fails, or is no finite number.
        """
        widths = self._checked(widths)
        with without_tf32():
            evaluation = self._evaluator.evaluate(widths)
        if self._score is not None and evaluation.widths not in self._scores:
            self._scores[evaluation.widths] = self._scored(self._score, widths)
        if self.budget.allows(widths):
            self._found[evaluation.widths] = self.value(evaluation)
        return evaluation

    def _scored(self, score: Score, widths: tuple[int, ...]) -> float:
        """Return the user's own score of a candidate.

        It gets a copy, as the candidate shares its tensors with the dense network and with all candidates
        after it, which a score that estimates batch norms anew or trains would change.
        """
        with torch.no_grad(), draws_kept():
            with self._evaluator.builder.network(widths) as lent:
                network = in_eval(copied(lent))
            return number_of(partial(score, network), f"score {self.reward.name!r}")

    def value(self, evaluation: Evaluation) -> float:
        """Return the score of an evaluated candidate."""
        return self._scores[evaluation.widths] if self._score is not None else self.reward(evaluation)

    @_as_the_command()
    def env(self, acts: Acts = "ratios", *, enforced: bool = True) -> PruningEnv:
        """Return a Gymnasium environment of this task, for any agent.

        An episode has ``episode_length`` steps, one for each channel group. It is stepped in the process of
        its task: in vectors, by ``gymnasium.vector.SyncVectorEnv`` or stable-baselines3's ``DummyVecEnv``.
        The last step of an episode in another process raises a ``SettingError``.

        Args:
            acts: what its actions are: preserve ``ratios`` (``envs.ChannelPruningEnv``), or ``weights`` of
                error curves (``envs.ChannelWeightingEnv``), which need an enforced budget.
            enforced: whether the networks are within the budget for any actions. They are not where the
                reward enforces no budget, which is told in a line.

        Raises:
            SettingError: ``acts`` is something else, or weights are asked for without an enforced budget.
        """
        arena = replace(self._arena(), network=OneProcessNetwork(self, self._process))
        found = arena.env(acts, enforced=enforced)
        if enforced:
            self._tell_unenforced()
        return found

    def _tell_unenforced(self) -> None:
        """Log a line, each time, if the reward enforces no budget: the network may exceed what was asked."""
        if self.reward.enforces_budget:
            return
        limits = ", ".join(f"{kind}_ratio={ratio:g}" for kind, ratio in self._ratios.items())
        _log.warning(
            "reward=%r does not enforce the budget: the network may exceed %s; report['reached'] has what it "
            "keeps",
            self.reward.name,
            limits,
        )

    def _arena(self) -> Arena:
        return Arena(
            self,
            self.space,
            self.budget,
            replace(self.reward, score=self.value),
            group_features(self.graph),
            curves=partial(self._curves),
            dense=self._dense,
            scores=self._channel_scores,
        )

    def _channel_scores(self, importance: Importance) -> dict[str, tuple[float, ...]]:
        if importance == "taylor":
            self._check_labels("agent=global_taylor")
        return global_scores(self._evaluator.builder.dense, self.graph, importance, self._calibration)

    def _check_labels(self, setting: str) -> None:
        """Refuse a setting that needs the loss on the calibration images where these have no labels."""
        if not self._calibration_has_labels:
            raise SettingError(
                f"{setting} needs calibration images with labels, and got images alone; give a pair (images, "
                "labels), or a data set or loader of pairs"
            )

    @_as_the_command()
    def search(
        self,
        agent: str = "ddpg",
        *,
        episodes: int | None = None,
        seed: int | None = None,
        on_episode: Callable[[Episode], None] | None = None,
        **settings: Any,
    ) -> Compressed:
        """Search with one of the built-in agents, and prune the best network that the budget allows.

        Any network is allowed where the reward enforces no budget, which is told in a line.

        Args:
            agent: name of an agent in ``conf/agent``; its file gives the settings.
            episodes: number of candidates to score; by default the value in the agent's file.
            seed: seed of all random draws; by default that of the task.
            on_episode: called after every episode; it ends the search by raising ``agents.SearchEnded``.
            settings: other settings of the agent, such as ``warmup_episodes=10``. ``name`` with a dotted
                path replaces the agent by one of the user's own, as ``agent.name`` does on the command line.

        Raises:
            SettingError: the agent or a setting is unknown or impossible.
            AmcError: the agent fails, the search was ended before an episode that may win, or the pruned
                network fails a check.
        """
        seed = self._seed if seed is None else whole_seed(seed)
        if episodes is not None:
            settings["episodes"] = whole_number("episodes", episodes)
        config = agent_preset(agent, **settings)
        check_agent(config, self._evaluator.builder.settings.order)
        check_search(config, self.reward)
        refuse_unseen(config, "a search in Python")
        self._tell_unenforced()
        log: list[dict[str, Any]] = []
        arena = self._arena()
        with self._bar("search", "episode", episodes_of(config)) as bar:

            def watch(episode: Episode) -> None:
                log.append(_line(episode))
                best = max((line["return"] for line in log if line["phase"] != "relaxed"), default=None)
                bar.set_postfix_str("" if best is None else f"best {best:.4g}")
                bar.update()
                if on_episode is not None:
                    with draws_kept():  # what it draws must not change the search
                        on_episode(episode)

            with draws_kept(), without_tf32():
                found = searched(config, arena, seed, watch)
        widths = found.best.info["evaluation"].widths
        facts: dict[str, Any] = {"agent": found.agent, "seed": seed, "best_episode": found.best.index}
        return self._compressed(widths, found.best.value, facts, log)

    @_as_the_command()
    def result(self) -> Compressed:
        """Prune the best network within the budget that was evaluated so far.

        Any network counts where the reward enforces no budget, which is told in a line.

        Raises:
            AmcError: no network within the budget was evaluated.
        """
        if not self._found:
            raise AmcError("no network within the budget was evaluated; step an environment to its end first")
        self._tell_unenforced()
        widths = max(self._found, key=self._found.__getitem__)
        return self._compressed(widths, self._found[widths], {"agent": None, "seed": None}, [])

    @_as_the_command()
    def prune(self, widths: Sequence[int]) -> Compressed:
        """Prune to given widths.

        Args:
            widths: kept channels of every group, in forward order.

        Raises:
            SettingError: there is not one possible width for each group, or they exceed the budget: one on
                the latency as predicted or as measured. Where the reward enforces no budget, which is told in
                a line, they may.
        """
        widths = self._checked(widths)
        if not self.budget.allows(widths):
            raise SettingError(f"the widths cost {self.budget.shortfall(widths)}")
        if not self.budget.fits(widths):
            self._tell_unenforced()
        latency = self._latency.measured(self.budget, widths) if "latency" in self._ratios else None
        value = self.value(self.evaluate(widths))
        return self._pruned(widths, value, latency, {"agent": None, "seed": None}, [])

    def _checked(self, widths: Sequence[int]) -> tuple[int, ...]:
        """Return widths as whole numbers, one for each group, from 1 to the dense width."""
        names, dense = self.graph.group_names, self.graph.dense_widths
        try:
            found = tuple(map(index, widths))
        except TypeError as error:
            raise SettingError(
                f"widths is {' '.join(repr(widths).split()):.80}; expected {len(dense)} whole numbers, one "
                "for each group"
            ) from error
        if len(found) != len(dense):
            raise SettingError(
                f"widths has {len(found)} numbers; expected {len(dense)}, one for each group of task.graph"
            )
        for name, width, most in zip(names, found, dense, strict=True):
            if not 1 <= width <= most:
                raise SettingError(f"the width of group {name} is {width}; expected 1 to {most} channels")
        return found

    def _compressed(
        self, widths: tuple[int, ...], value: float, facts: dict[str, Any], log: list[dict[str, Any]]
    ) -> Compressed:
        """Prune the network that was found; one that measures over the latency is made smaller."""
        searched, latency = widths, None
        if "latency" in self._ratios:
            widths, latency = self._latency.repaired(self.budget, widths, self._curves)
        if widths != searched:
            value = self.value(self.evaluate(widths))
        return self._pruned(widths, value, latency, facts, log)

    def _pruned(
        self,
        widths: tuple[int, ...],
        value: float,
        latency: dict[str, Any] | None,
        facts: dict[str, Any],
        log: list[dict[str, Any]],
    ) -> Compressed:
        evaluator = self._evaluator
        images = evaluator.images.float().cpu()
        met = {tuple(line["widths"]) for line in log} or self._found  # an agent of the caller's has no log
        with without_tf32(), self._bar("refit", "operation", None) as bar:
            pruned = prune(
                evaluator.builder,
                self._calibration.images,
                widths,
                self._pruning,
                unseen=images,
                progress=bar.update,
            )
        judged = evaluator.judge(widths, outputs(pruned.model, images, evaluator.batch_size))
        report: dict[str, Any] = {
            "budget": self._described(),
            "reached": self.budget.shares(widths) | ({"latency": latency["measured"]} if latency else {}),
            "dense": _facts(evaluator.dense),
            "candidate": {**_facts(evaluator.evaluate(widths)), "return": value},
            "pruned": _facts(judged) | {"refit": pruned.refit, "note": pruned.note},
            "search": {**facts, "reward": self.reward.name, "evaluations": len(met)},
            "episodes": log,
            "left_whole": [asdict(item) for item in self.graph.unprunable],
            **({"latency": latency} if latency else {}),
        }
        strategy = self._strategy(widths, {**facts, "reward": self.reward.name, "value": value})
        return Compressed(pruned.model, strategy, report)

    def _strategy(self, widths: tuple[int, ...], provenance: dict[str, Any]) -> Strategy:
        builder, dense = self._evaluator.builder, self.graph.dense_widths
        columns = self._evaluator.dense_outputs.shape[1]
        kind = type(builder.dense)
        spec = ModelSpec(f"{kind.__module__}.{kind.__qualname__}", columns, _shape(self.graph))
        return Strategy(
            groups=tuple(
                GroupWidth(name, full, kept)
                for name, full, kept in zip(self.graph.group_names, dense, widths, strict=True)
            ),
            macs_ratio=builder.macs(widths) / builder.macs(dense),
            params_ratio=builder.params(widths) / builder.params(dense),
            seed=provenance.get("seed") or 0,
            model=spec.to_json(),
            budget={**self._described(), "fit": self.budget.fit},
            provenance=provenance,
        )

    def _described(self) -> dict[str, Any]:
        return {**self.budget.described(), "enforced": self.budget.enforced}

    def _dense(self) -> Evaluation:
        """Return the evaluation of the dense network, which a score of the user's own has judged, too."""
        return self._evaluator.dense if self._score is None else self.evaluate(self.graph.dense_widths)

    def _bar(self, description: str, unit: str, total: int | None) -> tqdm:
        return progress(total, description, unit, shown=self._progress)


def _proved(
    model: nn.Module, image: torch.Tensor, exclude: str | Sequence[str], prune_coupled: bool
) -> Graph:
    example = noise_image(model, image.shape[1:])
    graph = exclude_groups(trace(model, example), exclude, prune_coupled=prune_coupled, max_inputs=10_000)
    return with_other_macs(prove(model, graph).graph, model)


def _shape(graph: Graph) -> tuple[int, int, int]:
    channels, height, width = graph.input_shape
    return channels, height, width


def _facts(evaluation: Evaluation) -> dict[str, Any]:
    facts = {name: value for name, value in asdict(evaluation).items() if name not in ("seconds", "widths")}
    return {"widths": list(evaluation.widths), **facts}


def _line(episode: Episode) -> dict[str, Any]:
    evaluation: Evaluation = episode.info["evaluation"]
    return {"episode": episode.index, "phase": episode.phase, "return": episode.value, **_facts(evaluation)}
