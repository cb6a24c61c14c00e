"""The problem that all budgets of a job share: the network, the data, and the evaluator of candidates."""

from __future__ import annotations

import json
from dataclasses import fields
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
from amc.errors import AmcError, FileError, NotPrunableError, SettingError, UnavailableError
from amc.graph.groups import Graph, exclude_groups
from amc.graph.trace import trace
from amc.latency import Backend, RemoteBackend
from amc.latency.prediction.int8 import METHOD, in_int8
from amc.latency.prediction.layer_kinds import layer_kinds
from amc.latency.prediction.model import LatencyModel
from amc.latency.remote.protocol import setup_of
from amc.models import ModelSpec, build
from amc.models.checkpoint import (
    load_into,
    load_state_dict,
    safetensors_metadata,
    save_safetensors,
    state_digest,
)
from amc.models.names import is_code
from amc.models.spec import spec_of
from amc.notes import note_once
from amc.reading import read_json
from amc.scoring.precision import chosen_precision
from amc.scoring.run import outputs, usable_device
from experiments.config.runtimes import backend_of, quantize_settings
from experiments.config.schema import Config
from experiments.config.stages import CUTTING
from experiments.run.folder import PICTURES, RunFolder
from experiments.run.values import comes_trained, searches_apart, validates_honestly

_ABOUT = "model"
"""Key of the metadata of ``dense.safetensors``: which model the weights are of."""
_BATCH = 256
"""Images per batch when the dense network chooses images."""


class Problem:
    """The network and the data of a job; each part is built at its first use, and none depends on a budget.

    Args:
        config: the checked configuration.
        folder: the run folder of the job, which keeps the dense network and the evaluations.
    """

    def __init__(self, config: Config, folder: RunFolder) -> None:
        self.config = config
        self.folder = folder
        self._evaluator: Evaluator[CandidateBuilder] | None = None
        self._unseen: Evaluator[CandidateBuilder] | None = None
        self._curves: ErrorCurves | None = None
        self._dense_is_kept = False
        self._to_be_profiled = "profile" in config.stages

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
    def _traced(self) -> Graph:
        """The channel groups before they are proved."""
        config = self.config.compressor
        graph = trace(self.fresh_model(), torch.zeros(1, *self.splits.input_shape))
        return exclude_groups(
            graph, config.exclude, prune_coupled=config.prune_coupled, max_inputs=config.max_inputs
        )

    def _rebuilt(self) -> nn.Module:
        """Build the dense network with other draws, as ``load_pruned`` does: without downloaded weights."""
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed + 1)
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
                return self.latency_model

    def dense_cost(self, kind: str) -> float:
        """Return the cost of the dense network, which is 100% of a budget: for ``size`` its bits as float32.

        Raises:
            AmcError: as ``cost``.
        """
        if kind == "size":
            return float(self.float_size)
        return float(self.cost(kind)(self.graph.dense_widths))

    @property
    def original(self) -> Problem:
        """The problem of the network that the configuration names; another one if this was cut from it."""
        return self

    def original_widths(self, widths: tuple[int, ...]) -> tuple[int, ...]:
        """Return widths of this network's groups as widths of all groups of the original network."""
        return widths

    @property
    def comes_trained(self) -> bool:
        """Whether the configuration names weights for the dense network."""
        return comes_trained(self.config)

    @property
    def validates_honestly(self) -> bool:
        """Whether the dense network cannot have been trained on the held-out images."""
        return validates_honestly(self.config) and self.original.search_images_trained_on == 0

    @cached_property
    def search_images_trained_on(self) -> int:
        """Number of search images that an earlier call has trained the folder's dense network on.

        It is 0 where nothing is known. Of pictures every one is known, of other images how many were held
        out: the first ones, whatever their number (``amc.data.picking``).
        """
        splits = self.splits
        if "train" in self.config.stages or self.comes_trained:
            return 0
        if splits.pictures is not None and self.folder.trained_on.exists():
            trained = load_state_dict(self.folder.trained_on).get(PICTURES)
            return 0 if trained is None else splits.pictures.among("search_val", trained)
        if searches_apart(self.config) or not splits.takes_from_training:
            return 0
        kept = self.held_out_then
        return 0 if kept is None else max(0, splits.search_images - kept)

    @property
    def held_out_then(self) -> int | None:
        """Number of images that were held out when the folder's dense network was trained, if known."""
        try:
            facts = self.folder.recorded("train") or {}
        except FileError:  # which is told when the record is shown
            return None
        kept: int | None = facts.get("held_out")
        return kept

    def fresh_model(self) -> nn.Module:
        """Build the dense network with its initial or downloaded weights; torch's generator is restored."""
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            model = build(self.spec, trust_dotted_path=True, pretrained=self.config.model.pretrained)
            return ready(model, self.spec.input_shape)

    @cached_property
    def dense(self) -> nn.Module:
        """The trained dense network, in eval mode on the CPU.

        Raises:
            FileError: there are no trained weights.
            AmcError: the weights do not fit the network, or its outputs do not fit the labels.
        """
        model = self.fresh_model()
        checkpoint, stored = self.config.model.checkpoint, self.folder.dense
        if checkpoint is not None:
            load_into(model, load_state_dict(checkpoint), checkpoint)
        elif stored.exists() and not self._is_of_another_model:
            load_into(model, load_state_dict(stored), str(stored))
        else:
            self.require_dense()
        model.eval()
        found = outputs(model, torch.zeros(1, *self.splits.input_shape), 1)
        if self.graph.classifies:
            check_labels(self.splits.search_val.labels, found.shape[1])
        return model

    @property
    def _is_of_another_model(self) -> bool:
        """Whether the stored weights must not take the place of pretrained ones; a line tells it.

        Files of earlier releases do not say what they are of, and are loaded.
        """
        stored = safetensors_metadata(self.folder.dense).get(_ABOUT)
        if not self.config.model.pretrained or stored in (None, self._about_dense()):
            return False
        note_once(
            f"{self.folder.dense} is of another model, {stored}; the pretrained weights of {self.spec.name} "
            "take its place"
        )
        return True

    def _about_dense(self) -> str:
        """Return in JSON what the weights of the dense network are of."""
        model = self.config.model
        about = {"name": model.name, "kwargs": dict(model.kwargs), "pretrained": model.pretrained}
        return json.dumps(about, sort_keys=True, default=str)

    @property
    def has_dense(self) -> bool:
        """Whether there are weights of a trained dense network."""
        return self.comes_trained or self.folder.dense.exists()

    def require_dense(self) -> None:
        """Make sure that there are weights of a trained dense network.

        Raises:
            FileError: there are none.
        """
        if not self.has_dense:
            self.folder.require(self.folder.dense, "train", ", or give model.checkpoint=FILE")

    @cached_property
    def dense_digest(self) -> str:
        """Hash of the trained dense network."""
        return state_digest(self.dense.state_dict())

    def keep_dense(self) -> None:
        """Write the dense network to the run folder, unless it was read from there."""
        if self._dense_is_kept:
            return
        dense = self.dense
        if self.comes_trained or not self.folder.dense.exists():
            self.save_dense(dense)
        self._dense_is_kept = True

    def save_dense(self, model: nn.Module) -> None:
        """Write a network to the run folder as the dense one, with the name of the model that it is of."""
        save_safetensors(model.state_dict(), self.folder.dense, {_ABOUT: self._about_dense()})

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

    @property
    def profiled(self) -> bool:
        """Whether there is a latency model; one that the job is still to measure anew does not count."""
        return self.folder.latency_model.exists() and not self._to_be_profiled

    def take_profile(self) -> None:
        """From now on use the latency model that stage ``profile`` has just written."""
        self._to_be_profiled = False
        self.__dict__.pop("latency_model", None)

    @cached_property
    def latency_model(self) -> LatencyModel:
        """Predicted milliseconds at any widths, from stage ``profile``.

        Raises:
            FileError: the file is missing or damaged.
            AmcError: it describes another runtime or network.
        """
        path = self.folder.require(self.folder.latency_model, "profile")
        data = read_json(path, {}, "run stages=[profile] again")
        config, kinds = self.config.profile, layer_kinds(self.graph, self.fresh_model())
        model = LatencyModel.from_json(data, self.graph, kinds, str(path))
        measured = (model.target.runtime, model.target.batch, model.target.threads)
        if measured != (asked := (config.backend, config.batch, config.threads)):
            raise AmcError(
                f"{path} is about {_target(*measured)}, the configuration asks for {_target(*asked)}: run "
                "stages=[profile] again"
            )
        if (model.target.precision == METHOD) != config.int8:
            raise AmcError(
                f"{path} is about {model.target.precision} networks, the configuration has "
                f"profile.int8={str(config.int8).lower()}: run stages=[profile] again"
            )
        setup = self.backend_setup()
        if model.target.setup not in ("", setup):  # models of earlier versions have none
            raise AmcError(
                f"{path} was measured with {model.target.setup}, the configuration asks for "
                f"{setup or 'nothing of the kind'}: run stages=[profile] again"
            )
        return model

    def backend_setup(self) -> str:
        """Return what the latency on the configured runtime depends on besides its name, such as the host."""
        return setup_of(backend_of(self.config.profile.backend, self.config.latency))

    def available_backend(self) -> Backend | RemoteBackend:
        """Return the runtime of latency budgets.

        Raises:
            AmcError: the runtime is unknown, or runs no quantized networks and should.
            UnavailableError: it does not run here.
        """
        backend = backend_of(self.config.profile.backend, self.config.latency)
        if (reason := backend.available()) is not None:
            raise UnavailableError(f"profile.backend={backend.name} cannot be measured here: {reason}")
        return in_int8(backend) if self.config.profile.int8 else backend


def _target(runtime: str, batch: int, threads: int) -> str:
    return f"{runtime} (batch {batch}, {threads} thread{'s' if threads > 1 else ''})"
