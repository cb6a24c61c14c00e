"""From widths to networks: cut, with refitted weights, batch norm folded where a candidate is only judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amc.candidate.folding import FoldedNetwork
from amc.candidate.settings import CandidateSettings
from amc.cost.closed_form import macs_cost, params_cost
from amc.cutting.slicing import Cut, SlicePlan, slice_model
from amc.data import LabelledImages
from amc.graph.groups import Graph
from amc.importance.orders import channel_orders
from amc.refit.lookup import RefitLookup
from amc.refit.moments import Moments, collect_moments, refit_layers
from amc.refit.sequential import SequentialRefit, Way
from amc.scoring.layout import memory_format_of
from amc.scoring.precision import dtype_of, without_autocast
from amc.scoring.run import copied, in_eval


@dataclass(frozen=True)
class Refitted:
    """A refit in sequence: how many layers, which way, and why by recorded calls, if so."""

    layers: int
    way: Way
    why_recorded: str | None


class CandidateBuilder:
    """Builds pruned versions of one dense network.

    Second moments and channel orders are computed once; after that a candidate costs slicing and a look-up
    of refitted weights, or a sequential refit where the settings ask for one.

    Args:
        model: the dense network; it is read and never changed.
        graph: its channel groups.
        calibration: training images for the refit and the channel order; only ``taylor`` needs labels.
        settings: how candidates are made.
        device: where candidates run.
        progress: called with the number of calibration images done.
        whole: multiply-adds and parameters that count as 100 percent; by default those of ``model``, which
            may have been cut from the network that has them.

    Attributes:
        dense: a copy of the dense network, in eval mode on the CPU, to be read only.
        macs, params: cost of any widths.
        whole_costs: multiply-adds and parameters that count as 100 percent.
        estimated_errors: name of a group -> estimated output error at every width; {} if the order gives
            none.

    Raises:
        AmcError: the calibration images give NaN, or no gradient where the order needs one.
    """

    @without_autocast()
    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        calibration: LabelledImages,
        settings: CandidateSettings,
        *,
        device: str | torch.device = "cpu",
        progress: Callable[[int], Any] | None = None,
        whole: tuple[float, float] | None = None,
    ) -> None:
        self.graph = graph
        self.settings = settings
        self.device = torch.device(device)
        self.macs = macs_cost(graph)
        self.params = params_cost(graph, model)
        self.whole_costs = whole or (self.macs(graph.dense_widths), self.params(graph.dense_widths))
        # contiguous, as slicing makes what it cuts: layers of another format round otherwise
        self.dense = in_eval(copied(model).cpu().to(memory_format=torch.contiguous_format))
        needed = settings.refit or settings.order == "obs"
        moments = self._collect(calibration.images, progress) if needed else {}
        found = channel_orders(
            graph, self.dense, settings.order, moments, calibration, device=device, ridge=settings.ridge
        )
        self.estimated_errors = found.errors
        self._plan = SlicePlan(graph, model, found.orders)
        self._lookup = RefitLookup(
            self.dense,
            graph,
            found.orders,
            moments if settings.refit else {},
            ridge=settings.ridge,
            cache_bytes=settings.cache_mib * 2**20,
        )
        self._folded = self._folded_network(settings.precision)
        self._sequential_images = calibration.images[: settings.sequential_images]
        self._sequential: SequentialRefit | None = None

    @property
    def dense_widths(self) -> tuple[int, ...]:
        """Widths of the network that candidates are compared with."""
        return self.graph.dense_widths

    @property
    def classifies(self) -> bool:
        """Whether the network returns logits (N, classes)."""
        return self.graph.classifies

    @property
    def memory_format(self) -> torch.memory_format:
        """The format in which candidates take images."""
        return self._folded.memory_format

    def prepare(self) -> None:
        """Compute the parts that all candidates share, once: the dense side of a sequential refit."""
        if self._sequential is None and len(self._sequential_images):
            self._sequential = self._sequential_refit(self._sequential_images)

    def factorise(self) -> None:
        """Solve the refits of minimal widths: the factorisations behind them serve all other widths."""
        self._lookup.tensors(self.cut([1] * len(self.graph.groups)))

    def cut(self, widths: Sequence[int]) -> Cut:
        """Return which channels stay at ``widths``, one number a group, in forward order."""
        return self._plan.cut(widths)

    def pruned_model(self, cut: Cut) -> nn.Module:
        """Return a new network with looked-up weights, batch norm in place, on the CPU, in eval mode."""
        tensors = {  # copies: tensors that are not cut are shared with the dense network and the cache
            name: {key: tensor.clone() for key, tensor in own.items()}
            for name, own in self._lookup.tensors(cut).items()
        }
        return slice_model(self.dense, cut, tensors)

    @contextmanager
    def network(self, widths: Sequence[int]) -> Iterator[nn.Module]:
        """Lend the candidate as the search judges it, batch norm folded; it changes with the next one.

        Raises:
            RuntimeError: another candidate is still lent.
        """
        cut = self.cut(widths)
        self.prepare()
        if self._sequential is None or cut.widths == self.dense_widths:
            lent: AbstractContextManager[nn.Module] = self._folded.loaded(
                self._lookup.tensors(cut), cut.keeps
            )
        else:
            model = in_eval(self.pruned_model(cut)).to(self.device)
            self._sequential(
                model,
                cut,
                ridge=self.settings.ridge,
                reestimate_norms=self.settings.reestimate_norms,
                activation_rounds=self.settings.activation_rounds,
            )
            lent = self._folded.loaded_from(model, cut.keeps)
        with lent as network:
            yield network

    def looked_up(self, cut: Cut, precision: str | None = None) -> AbstractContextManager[nn.Module]:
        """Lend the candidate with looked-up weights, batch norm folded; it changes with the next one.

        Args:
            precision: one of ``amc.scoring.precision.PRECISIONS``; that of the search if None.
        """
        other = precision not in (None, self.settings.precision)
        folded = self._folded_network(str(precision)) if other else self._folded
        return folded.loaded(self._lookup.tensors(cut), cut.keeps)

    def measuring(self) -> Callable[[Sequence[int]], AbstractContextManager[nn.Module]]:
        """Return what lends candidates with looked-up weights in float32: a network of its own."""
        folded = self._folded_network("float32")

        def lend(widths: Sequence[int]) -> AbstractContextManager[nn.Module]:
            cut = self.cut(widths)
            return folded.loaded(self._lookup.tensors(cut), cut.keeps)

        return lend

    def refit_in_sequence(
        self,
        model: nn.Module,
        cut: Cut,
        images: Tensor,
        *,
        held_out: float = 0.0,
        activation_rounds: int = 0,
        progress: Callable[[int], Any] | None = None,
    ) -> Refitted:
        """Refit a cut network in place, layer by layer.

        Args:
            model: a network of this cut on the CPU, in eval mode.
            images: calibration images (N, C, H, W).
            held_out, activation_rounds: see ``SequentialRefit``.
            progress: called with 1 after every step.

        Raises:
            AmcError: it cannot be refitted.
        """
        refit = self._sequential_refit(images, held_out=held_out, progress=progress)
        model.to(self.device)
        count = refit(
            model,
            cut,
            ridge=self.settings.ridge,
            reestimate_norms=self.settings.reestimate_norms,
            activation_rounds=activation_rounds,
            progress=progress,
        )
        model.cpu()
        return Refitted(count, refit.way, refit.why_recorded)

    def _sequential_refit(
        self, images: Tensor, *, held_out: float = 0.0, progress: Callable[[int], Any] | None = None
    ) -> SequentialRefit:
        return SequentialRefit(
            copied(self.dense).to(self.device),
            images.to(self.device),
            positions_per_image=self.settings.positions_per_image,
            held_out=held_out,
            norms=self.graph.norm_after,
            progress=progress,
        )

    def _folded_network(self, precision: str) -> FoldedNetwork:
        return FoldedNetwork(self.dense, self.graph, self.device, dtype_of(precision))

    def _collect(self, images: Tensor, progress: Callable[[int], Any] | None) -> Mapping[str, Moments]:
        layout = memory_format_of(self.dense, images[:2])
        model = copied(self.dense).to(self.device, memory_format=layout)  # type: ignore[call-overload]
        return collect_moments(
            model,
            refit_layers(self.graph),
            images.to(self.device),
            positions_per_image=self.settings.positions_per_image,
            progress=progress,
        )
