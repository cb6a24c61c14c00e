"""The problem that all budgets of a job share: the network, the data, and the evaluator of candidates."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from amc import data as datasets
from amc.budget.budget import Cost
from amc.candidate.builder import CandidateBuilder
from amc.candidate.error_curves import ErrorCurves
from amc.candidate.evaluator import Evaluator, channel_evaluator
from amc.candidate.fingerprint import fingerprint
from amc.candidate.memo import Memo
from amc.candidate.settings import CandidateSettings
from amc.cost.closed_form import BilinearCost, macs_cost, params_cost
from amc.cost.constant import with_other_macs
from amc.cost.exported import ExportedSize
from amc.cutting.exactness import Proved, prove
from amc.cutting.trial import ready
from amc.data import Splits, check_labels
from amc.data.selection import Selection, selected
from amc.data.splits import fingerprint as images_fingerprint
from amc.digest import state_digest
from amc.errors import NotPrunableError, SettingError
from amc.graph.groups import Graph, exclude_groups, named_layers
from amc.graph.layers import noise_image
from amc.graph.patterns import matches
from amc.graph.trace import trace
from amc.models import ModelSpec, build
from amc.models.names import is_code
from amc.models.spec import spec_of
from amc.scoring.precision import chosen_precision
from amc.scoring.run import outputs, usable_device
from amc.seeds import draws_kept, seed_all
from experiments.config.runtimes import quantize_settings
from experiments.config.schema import Config
from experiments.config.stages import CUTTING
from experiments.run.folder import RunFolder
from experiments.run.problem.latency import LatencySource
from experiments.run.problem.normalisation import check_normalisation
from experiments.run.problem.weights import DenseWeights
from experiments.run.values import searches_apart, validates_honestly

_BATCH = 256
"""Images per batch when the dense network chooses images."""


class Problem:
    """The network and the data of a job; each part is built at its first use, and none depends on a budget.

    Args:
        config: the checked configuration.
        folder: the run folder of the job, which keeps the dense network and the evaluations.

    Attributes:
        weights: of the dense network: where they come from, and what it was trained on.
        latency: the latency model of the run folder, and the runtime that measures.
    """

    def __init__(self, config: Config, folder: RunFolder) -> None:
        self.config = config
        self.folder = folder
        self._evaluator: Evaluator[CandidateBuilder] | None = None
        self._unseen: Evaluator[CandidateBuilder] | None = None
        self._curves: ErrorCurves | None = None
        self._dense_is_kept = False
        self.weights = DenseWeights(config, folder)
        self.latency = LatencySource(config, folder, lambda: (self.graph, self.fresh_model()))

    @cached_property
    def device(self) -> torch.device:
        """The device that trains and searches.

        Raises:
            UnavailableError: it cannot be used.
        """
        if self.config.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return usable_device(self.config.device)

    @cached_property
    def splits(self) -> Splits:
        """The data set."""
        return datasets.build(**self.data_options)

    @property
    def data_options(self) -> dict[str, Any]:
        """The keyword arguments that build the data set."""
        own = {f.name: getattr(self.config.data, f.name) for f in fields(self.config.data)}
        chosen_later = ("select", "select_calibration", "select_search_val")
        counts = ("search_val", "calibration")  # null leaves them to the data set
        given = {
            name: value
            for name, value in own.items()
            if name not in chosen_later and (value is not None or name not in counts)
        }
        return {**given, "seed": self.config.seed}

    def load_data(self) -> Splits:
        """Load the data set now, so that errors in it are reported before any work is done.

        Raises:
            AmcError: the data cannot be read, or has too few images.
        """
        self._selection.check(self.splits)
        return self.splits

    @property
    def _selection(self) -> Selection:
        data = self.config.data
        return Selection(data.select, data.select_calibration, data.select_search_val)

    @cached_property
    def chosen(self) -> Splits:
        """The data set with the images that ``data.select`` chooses for calibration and search.

        The dense network chooses, so that a training has all images of ``splits``.

        Raises:
            AmcError: there is no trained dense network, or its outputs do not allow the choice.
        """
        return selected(self.splits, self._selection, lambda images: outputs(self.dense, images, _BATCH))

    @cached_property
    def drawn(self) -> Splits:
        """The data set with as many images as ``chosen`` has, which are drawn: no dense network is needed."""
        return selected(self.splits, replace(self._selection, method="random"), lambda images: images)

    @cached_property
    def spec(self) -> ModelSpec:
        """Name and arguments from which the dense network is built."""
        model, splits = self.config.model, self.splits
        return spec_of(
            model.name, model.kwargs, splits.num_classes, splits.input_shape, pretrained=model.pretrained
        )

    @cached_property
    def proof(self) -> Proved:
        """The channel groups that can be cut exactly, less those that the configuration leaves out.

        No trained weights are needed.

        Raises:
            NotPrunableError: the network cannot be cut exactly in any group.
        """
        return prove(self.fresh_model(), self._traced, rebuild=self._rebuilt)

    @cached_property
    def graph(self) -> Graph:
        """The channel groups of ``proof``; of a job that cuts no channels, those of an unproved network, too.

        Raises:
            NotPrunableError: there is no proof, and the job cuts channels.
        """
        try:
            graph = self.proof.graph
        except NotPrunableError:
            if self.cuts_channels:
                raise
            graph = self._traced
        return with_other_macs(graph, self.fresh_model())

    @cached_property
    def cuts_channels(self) -> bool:
        """Whether a stage of the job is about cutting channels: the network must be proved prunable."""
        asked = set(self.config.stages)
        return bool(asked & CUTTING) or ("train" in asked and "sparsify" not in asked)

    @cached_property
    def _whole_graph(self) -> Graph:
        """All channel groups, those that the configuration leaves out as well."""
        model = self.fresh_model()
        return trace(model, noise_image(model, self.splits.input_shape))

    @cached_property
    def _traced(self) -> Graph:
        """The channel groups before they are proved."""
        config = self.config.compressor
        return exclude_groups(
            self._whole_graph,
            self._excluded_groups(),
            prune_coupled=config.prune_coupled,
            max_inputs=config.max_inputs,
        )

    def _excluded_groups(self) -> list[str]:
        """Return the patterns of ``compressor.exclude`` that are for groups.

        In a job that cuts no channels one may name a layer without a group, for stage ``sparsify``.
        """
        graph, given = self._whole_graph, self.config.compressor.exclude
        if self.cuts_channels:
            return given
        names, layers = graph.group_names, [layer.name for layer in graph.layers]
        return [
            pattern
            for pattern in given
            if any(matches(name, pattern) for name in names)
            or not any(matches(name, pattern) for name in layers)
        ]

    @cached_property
    def excluded_layers(self) -> frozenset[str]:
        """Names of the layers that ``compressor.exclude`` names, or whose channels are a group that it names.

        Stage ``sparsify`` leaves their weights whole.
        """
        return named_layers(self._whole_graph, self.config.compressor.exclude)

    def _rebuilt(self) -> nn.Module:
        """Build the dense network with other draws, as ``load_pruned`` does: without downloaded weights."""
        with draws_kept(devices=None):
            seed_all(self.config.seed + 1)
            return build(self.spec, trust_dotted_path=True)

    @cached_property
    def params(self) -> BilinearCost:
        """Parameters at any widths."""
        return params_cost(self.graph, self.fresh_model())

    @cached_property
    def exported_size(self) -> ExportedSize:
        """Bits of the exported weights at any widths, under any settings of ``quantize``."""
        return ExportedSize(self.graph, self.fresh_model())

    @cached_property
    def size(self) -> BilinearCost:
        """Bits of the exported weights at any widths, as the settings of ``quantize`` store them."""
        return self.exported_size.stored(quantize_settings(self.config.quantize))

    @cached_property
    def float_size(self) -> int:
        """Bits of the exported weights of the dense network in float32."""
        return self.exported_size.as_floats()(self.graph.dense_widths)

    def cost(self, kind: str) -> Cost:
        """Return the cost of any widths that a budget of ``kind`` limits.

        Raises:
            AmcError: it is the latency, and there is no latency model of this network.
        """
        match kind:
            case "macs":
                return macs_cost(self.graph)
            case "params":
                return self.params
            case "size":
                return self.size
            case _:
                return self.latency.model

    def dense_cost(self, kind: str) -> float:
        """Return the cost of the dense network, which is 100% of a budget: for ``size`` its bits as float32.

        Raises:
            AmcError: as ``cost``.
        """
        if kind == "size":
            return float(self.float_size)
        return float(self.cost(kind)(self.graph.dense_widths))

    @property
    def whole_costs(self) -> tuple[float, float]:
        """Multiply-adds and parameters of the original network, of which evaluations hold shares."""
        return self.original.dense_cost("macs"), self.original.dense_cost("params")

    @property
    def original(self) -> Problem:
        """The problem of the network that the configuration names; another one if this was cut from it."""
        return self

    def original_widths(self, widths: tuple[int, ...]) -> tuple[int, ...]:
        """Return widths of this network's groups as widths of all groups of the original network."""
        return widths

    @property
    def validates_honestly(self) -> bool:
        """Whether the dense network cannot have been trained on the held-out images."""
        original = self.original
        return (
            validates_honestly(self.config)
            and original.search_images_trained_on == 0
            and (searches_apart(self.config) or not original.starts_trained)
        )

    @cached_property
    def starts_trained(self) -> bool:
        """Whether the dense network is trained from a start that has all of its weights."""
        return self.weights.starts_trained(self.fresh_model)

    @cached_property
    def search_images_trained_on(self) -> int:
        """Number of search images that an earlier call has trained the dense network on; 0 if unknown."""
        return self.weights.search_images_trained_on(self.splits)

    def fresh_model(self) -> nn.Module:
        """Build the dense network with its initial or downloaded weights; the random states are restored.

        Raises:
            SettingError: pretrained weights expect images that are normalised otherwise.
        """
        with draws_kept(devices=None):
            seed_all(self.config.seed)
            model = build(self.spec, trust_dotted_path=True, pretrained=self.config.model.pretrained)
            check_normalisation(self.config, model, self.splits)
            return ready(model, self.spec.input_shape)

    @cached_property
    def dense(self) -> nn.Module:
        """The trained dense network, in eval mode on the CPU.

        Raises:
            FileError: there are no trained weights.
            AmcError: the weights do not fit the network, or its outputs do not fit the labels.
        """
        model = self.fresh_model()
        self.weights.load_into(model)
        model.eval()
        found = outputs(model, noise_image(model, self.splits.input_shape), 1)
        if self.graph.classifies:
            check_labels(self.splits.search_val.labels, found.shape[1])
        return model

    @cached_property
    def dense_digest(self) -> str:
        """Hash of the trained dense network."""
        return state_digest(self.dense.state_dict())

    def keep_dense(self) -> None:
        """Write the dense network to the run folder, unless it was read from there."""
        if self._dense_is_kept:
            return
        dense = self.dense
        if self.weights.given or not self.folder.dense.exists():
            self.weights.save(dense)
        self._dense_is_kept = True

    def forget_dense(self) -> None:
        """Drop the dense network and all that was made of it, as other weights have been written."""
        self.release()
        for name in ("dense", "dense_digest", "chosen", "fingerprint"):
            vars(self).pop(name, None)
        self._dense_is_kept = False

    def settings(self) -> CandidateSettings:
        """Return the settings of candidates.

        Raises:
            AmcError: a setting is impossible.
        """
        config = self.config.compressor
        given = {f.name: getattr(config, f.name) for f in fields(CandidateSettings)}
        return CandidateSettings(**{**given, "precision": chosen_precision(config.precision, self.device)})

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that determines an evaluation."""
        return self._fingerprint(self.chosen.fingerprint)

    def _fingerprint(self, images: str) -> str:
        return fingerprint(self.dense, self.graph, images, self.settings(), *self.origin)

    @property
    def origin(self) -> tuple[str, ...]:
        """Name and arguments of the network in JSON, for fingerprints; () where modules and tensors tell all.

        Code of the user's own, and what arguments set, may read plain values. Paths of weights do not count:
        moved files change nothing.
        """
        model = self.config.model
        if not (model.kwargs or is_code(model.name)):
            return ()
        about = {"name": model.name, "kwargs": dict(model.kwargs)}
        return (json.dumps(about, sort_keys=True, default=str),)

    def evaluator(self, progress: Any = None) -> Evaluator[CandidateBuilder]:
        """Return the evaluator of candidates, built at the first call.

        Evaluations are kept in a file of the run folder. A stage may close it; it is opened again if needed.

        Args:
            progress: called with the number of calibration images done.
        """
        if self._evaluator is None:
            self._evaluator = channel_evaluator(
                self.dense,
                self.graph,
                self.chosen.calibration,
                self.chosen.search_val,
                self.settings(),
                memo=Memo(self.folder.evaluations, self.fingerprint),
                device=self.device,
                progress=progress,
                whole=self.whole_costs,
            )
        return self._evaluator

    def unseen_evaluator(self) -> Evaluator[CandidateBuilder]:
        """Return the evaluator of the same candidates on the unseen images; it has a file of its own.

        Raises:
            SettingError: there are no unseen images.
        """
        if self._unseen is None:
            if (images := self.splits.unseen) is None:
                raise SettingError("data.unseen is 0: there are no unseen images; write data.unseen=1000")
            about = images_fingerprint(self.chosen.calibration, images)
            self._unseen = self.evaluator().on(images, Memo(self.folder.unseen, self._fingerprint(about)))
        return self._unseen

    def curves(self) -> ErrorCurves:
        """Return the error curves of the groups; they are measured at their first call."""
        if self._curves is None:
            self._curves = ErrorCurves(self.evaluator())
        return self._curves

    @property
    def has_curves(self) -> bool:
        """Whether the error curves have been asked for."""
        return self._curves is not None

    def release(self) -> None:
        """Free the memory of the evaluator."""
        for evaluator in (self._evaluator, self._unseen):
            if evaluator is not None:
                evaluator.close()
        self._evaluator = self._unseen = self._curves = None
