"""The physics of compression: widths -> a small network with refitted weights -> its accuracy."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from amc.candidate.error_curves import measured_curves
from amc.candidate.folding import Shell, Tensors, sliced_shortcut
from amc.candidate.memo import Memo
from amc.candidate.settings import CompressorSettings
from amc.cost.closed_form import macs_cost, params_cost
from amc.cutting.modules import Keep, set_tensors, sliced_tensors
from amc.cutting.slicing import SlicePlan, kept_channels, slice_model
from amc.data import LabelledImages
from amc.graph.groups import Graph
from amc.importance.orders import channel_orders
from amc.models import OptionAShortcut
from amc.refit.lookup import RefitCache
from amc.refit.moments import Moments, collect_moments, refit_layers
from amc.refit.nested import NestedRefit, Refit, expand_columns, has_intercept, refit, shrinkage
from amc.refit.sequential import SequentialRefit
from amc.result import Evaluation
from amc.scoring.precision import PRECISIONS
from amc.scoring.run import outputs
from amc.scoring.scores import agreement, cross_entropy, likeness, top1


class Compressor:
    """Evaluates pruned versions of one dense network.

    Second moments are collected once; after that a candidate costs slicing, a look-up of refitted weights
    and the forward pass of the small network, with batch norm folded into the convolutions.

    Args:
        model: the dense network; it is read and never changed.
        graph: its channel groups.
        calibration: training images for the refit and the channel order; only ``taylor`` needs labels.
        search_val: held-out images and labels that give the accuracy.
        settings: how candidates are made.
        memo: where evaluations are remembered; in memory if not given.
        device: where candidates run.
        progress: called with the number of calibration images done.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        calibration: LabelledImages,
        search_val: LabelledImages,
        settings: CompressorSettings,
        *,
        memo: Memo | None = None,
        device: str | torch.device = "cpu",
        progress: Callable[[int], Any] | None = None,
    ) -> None:
        self.graph = graph
        self.settings = settings
        self.macs = macs_cost(graph)
        self.params = params_cost(graph, model)
        self.plan = SlicePlan(graph, model)
        self._model = copy.deepcopy(model).cpu().eval()
        self._modules = dict(self._model.named_modules())
        needed = settings.refit or settings.order == "obs"
        moments = self._collect(calibration.images, device, progress) if needed else {}
        found = channel_orders(
            graph, self._model, settings.order, moments, calibration, device=device, ridge=settings.ridge
        )
        self._orders = found.orders
        self._estimated_errors = found.errors
        self._errors: Mapping[str, tuple[float, ...]] | None = None
        self._moments = moments if settings.refit else {}
        self._nested: dict[str, NestedRefit] = {}
        self._input_slots = _input_slots(graph)
        self._refits = RefitCache(self._solve, settings.cache_mib * 2**20)
        self._memo = memo if memo is not None else Memo()
        self._device = torch.device(device)
        dtype = PRECISIONS[settings.precision]
        self.images = search_val.images.to(self._device, dtype, memory_format=torch.channels_last)
        self._sequential_images = calibration.images[: settings.sequential_images]
        self.labels = search_val.labels.cpu()  # logits come back to the CPU
        self._shell = Shell(self._model, graph, self._device, dtype)

    @cached_property
    def dense(self) -> Evaluation:
        """What the dense network achieves on ``search_val``."""
        return self.judge(self.graph.dense_widths, self.dense_outputs)

    @cached_property
    def dense_outputs(self) -> Tensor:
        """What the dense network returns on ``search_val``: (N, classes or columns), on the CPU."""
        return self.outputs(self.candidate(self.graph.dense_widths))

    def evaluate(self, widths: Sequence[int]) -> Evaluation:
        """Return what these widths achieve on ``search_val``; known ones cost nothing."""
        known = self._memo.get(widths)
        if known is not None:
            return known
        self.prepare()
        start = time.process_time()
        found = self.outputs(self.candidate(widths))
        evaluation = self.judge(widths, found, time.process_time() - start)
        self._memo.put(evaluation)
        return evaluation

    def errors(self, progress: Callable[[int], Any] | None = None) -> Mapping[str, tuple[float, ...]]:
        """Return what each group's pruning does to the outputs, at every width: {} if the order is not obs.

        Computed when first asked for.

        Args:
            progress: called with 1 after every network that is measured.
        """
        if self._errors is None:
            self._errors = self._estimated_errors
            if self._errors and (count := self.settings.measured_images):
                error_of = self._output_error(self.images[:count].float())
                self._errors = measured_curves(
                    self._errors, self.graph.dense_widths, error_of, progress=progress
                )
        return self._errors

    def _output_error(self, images: Tensor) -> Callable[[Sequence[int]], float]:
        """Return what tells the squared error of a candidate's outputs, as a share of their variance."""
        shell = Shell(self._model, self.graph, self._device, torch.float32)

        def run(widths: Sequence[int]) -> Tensor:
            return outputs(shell.load(self._tensors(widths)), images, self.settings.batch_size)

        dense = run(self.graph.dense_widths)
        return lambda widths: -likeness(run(widths), dense)

    def prepare(self) -> None:
        """Compute what all evaluations need, once and outside of their clock."""
        _ = self.dense_outputs, self._sequence

    @cached_property
    def _sequence(self) -> SequentialRefit | None:
        images = self._sequential_images
        return self.sequential_refit(images) if len(images) else None

    def outputs(self, model: nn.Module) -> Tensor:
        """Return what a candidate returns on ``search_val``: (N, classes or columns), on the CPU."""
        return outputs(model, self.images, self.settings.batch_size)

    def pruned_model(self, widths: Sequence[int]) -> nn.Module:
        """Return a new network of these widths with refitted weights, batch norm in place, on the CPU."""
        kept = kept_channels(self.graph, self._orders, widths)
        pruned = slice_model(self._model, self.plan, kept)
        modules = dict(pruned.named_modules())
        for name, tensors in self._tensors(widths).items():
            if not isinstance(modules[name], OptionAShortcut):
                # Copies: what is not cut is shared with the dense network and the cache of refits.
                set_tensors(modules[name], {key: tensor.clone() for key, tensor in tensors.items()})
        return pruned

    def candidate(self, widths: Sequence[int]) -> nn.Module:
        """Return the network as the search sees it, batch norm folded; valid until the next candidate."""
        if self._sequence is None or tuple(widths) == self.graph.dense_widths:
            return self.folded(widths)
        model = self.pruned_model(widths).eval().to(self._device)
        self._sequence(
            model,
            self.plan.keeps(self.kept(widths)),
            ridge=self.settings.ridge,
            reestimate_norms=self.settings.reestimate_norms,
            activation_rounds=self.settings.activation_rounds,
        )
        return self._shell.load_network(model)

    def folded(self, widths: Sequence[int], precision: str | None = None) -> nn.Module:
        """Return the candidate with looked-up weights, batch norm folded; valid until the next one.

        Args:
            precision: another one than that of the search.
        """
        shell = self._shell
        if precision not in (None, self.settings.precision):
            shell = Shell(self._model, self.graph, self._device, PRECISIONS[precision])
        return shell.load(self._tensors(widths))

    def sequential_refit(
        self,
        images: Tensor,
        *,
        held_out: float = 0.0,
        progress: Callable[[int], Any] | None = None,
    ) -> SequentialRefit:
        """Prepare the sequential refit of pruned versions on calibration images, on the candidates' device.

        Args:
            held_out: see ``SequentialRefit``.

        Raises:
            AmcError: the forward pass cannot be traced symbolically.
        """
        return SequentialRefit(
            copy.deepcopy(self._model).to(self._device),
            images.to(self._device),
            positions_per_image=self.settings.positions_per_image,
            held_out=held_out,
            progress=progress,
        )

    def refit_in_sequence(
        self,
        model: nn.Module,
        widths: Sequence[int],
        images: Tensor,
        *,
        held_out: float = 0.0,
        activation_rounds: int = 0,
        progress: Callable[[int], Any] | None = None,
    ) -> int:
        """Refit a network of these widths in place and return how many layers were refitted.

        Args:
            held_out, activation_rounds: see ``SequentialRefit``.

        Raises:
            AmcError: its forward pass cannot be traced symbolically.
        """
        refit = self.sequential_refit(images, held_out=held_out, progress=progress)
        model.to(self._device)
        count = refit(
            model,
            self.plan.keeps(self.kept(widths)),
            ridge=self.settings.ridge,
            reestimate_norms=self.settings.reestimate_norms,
            activation_rounds=activation_rounds,
            progress=progress,
        )
        model.cpu()
        return count

    def known(self, widths: Sequence[int]) -> Evaluation | None:
        """Return what is remembered of these widths; see ``Memo.get``."""
        return self._memo.get(widths)

    def remember(self, evaluation: Evaluation) -> None:
        """Keep an evaluation that was made elsewhere (``amc.workers``)."""
        self._memo.put(evaluation)

    def __getstate__(self) -> dict[str, Any]:
        """For another process: what is remembered of evaluations and single candidates stays here."""
        refits = RefitCache(self._solve, self.settings.cache_mib * 2**20)
        return {**vars(self), "_memo": Memo(), "_refits": refits}

    def close(self) -> None:
        """Close the file of remembered evaluations."""
        self._memo.close()

    def kept(self, widths: Sequence[int]) -> dict[str, Tensor]:
        """Return the channels that stay in every group at ``widths``."""
        return kept_channels(self.graph, self._orders, widths)

    def _collect(
        self, images: Tensor, device: str | torch.device, progress: Callable[[int], Any] | None
    ) -> Mapping[str, Moments]:
        model = copy.deepcopy(self._model).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return collect_moments(
            model,
            refit_layers(self.graph),
            images.to(device),
            positions_per_image=self.settings.positions_per_image,
            progress=progress,
        )

    def _solve(self, layer: str, channels: Tensor) -> Refit:
        """Refit a layer on kept input channels; one factorisation serves all widths of a single group."""
        weight = self._modules[layer].weight
        assert isinstance(weight, Tensor)
        taps = weight[0, 0].numel()
        options: dict[str, Any] = {
            "intercept": has_intercept(self.graph, self._modules, layer),
            "ridge": shrinkage(self.settings.ridge, weight[0].numel(), self._moments[layer].rows),
        }
        slots = self._input_slots[layer]
        if len(slots) > 1:
            return refit(self._moments[layer], weight.flatten(1), expand_columns(channels, taps), **options)
        group, positions = slots[0]
        if layer not in self._nested:
            columns = expand_columns(positions[self._orders[group]], taps)
            self._nested[layer] = NestedRefit(self._moments[layer], weight.flatten(1), columns, **options)
        fixed = weight.shape[1] - positions.numel()
        return self._nested[layer]((len(channels) - fixed) // positions.shape[1])

    def _tensors(self, widths: Sequence[int]) -> Tensors:
        """Return the tensors of every sliced module at ``widths``, refitted where inputs were lost."""
        keeps = self.plan.keeps(kept_channels(self.graph, self._orders, widths))
        tensors = {
            name: sliced_shortcut(module, keep)
            if isinstance(module := self._modules[name], OptionAShortcut)
            else sliced_tensors(module, keep)
            for name, keep in keeps.items()
        }
        for name in self._moments:
            self._apply_refit(name, keeps[name], tensors)
        return tensors

    def _apply_refit(self, name: str, keep: Keep, tensors: Tensors) -> None:
        weight = self._modules[name].weight
        assert isinstance(weight, Tensor)
        if keep.inputs is None or len(keep.inputs) == weight.shape[1]:
            return
        found = self._refits(name, keep.inputs)
        rows = slice(None) if keep.outputs is None else keep.outputs
        own = tensors[name]
        own["weight"] = found.weight[rows].reshape(own["weight"].shape)
        if "bias" in own:
            own["bias"] = own["bias"] + found.shift[rows]
        elif has_intercept(self.graph, self._modules, name):
            norm = self.graph.norm_after[name]
            if norm not in tensors:
                tensors[norm] = sliced_tensors(self._modules[norm], Keep())
            # The norm subtracts its running mean, so a shift of its input moves that mean the other way.
            tensors[norm]["running_mean"] = tensors[norm]["running_mean"] - found.shift[rows]

    def judge(self, widths: Sequence[int], found: Tensor, seconds: float = 0.0) -> Evaluation:
        """Score what a candidate returns; one that is no classifier has no top-1 accuracy and no loss."""
        dense = self.graph.dense_widths
        macs, params = self.macs(widths), self.params(widths)
        classifies = self.graph.classifies
        alike = likeness(found, self.dense_outputs)
        return Evaluation(
            widths=tuple(int(w) for w in widths),
            top1=top1(found, self.labels) if classifies else 0.0,
            loss=cross_entropy(found, self.labels) if classifies else 0.0,
            agreement=agreement(found, self.dense_outputs) if classifies else alike,
            likeness=alike,
            macs=macs,
            params=params,
            macs_ratio=macs / self.macs(dense),
            params_ratio=params / self.params(dense),
            seconds=seconds,
        )


def _input_slots(graph: Graph) -> dict[str, list[tuple[str, Tensor]]]:
    """For each layer, the groups on its input axis with the positions (channels, m) of their channels."""
    slots: dict[str, list[tuple[str, Tensor]]] = defaultdict(list)
    for group in graph.groups:
        for slot in group.slots:
            if slot.axis == "in":
                slots[slot.module].append((group.name, torch.tensor(slot.positions)))
    return slots
