"""The problem of a network that was cut before, and is to be cut further."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from torch import nn

from amc.cutting.slicing import shaped
from amc.data import Splits
from amc.graph.groups import Graph, leave_whole
from amc.models.checkpoint import load_into
from amc.models.state_files import load_state_dict
from amc.scoring.run import copied, in_eval
from amc.strategy import Strategy
from experiments.config.schema import Config
from experiments.run.folder import RunFolder
from experiments.run.problem.problem import Problem


class CutProblem(Problem):
    """A problem whose dense network is a pruned one; budgets stay shares of the original network.

    Args:
        config: the checked configuration.
        folder: the folder of this problem.
        original: the problem of the network that the configuration names; its data are shared.
        before: the widths of the pruned network.
        weights: file of its weights.
    """

    def __init__(
        self, config: Config, folder: RunFolder, original: Problem, before: Strategy, weights: Path
    ) -> None:
        super().__init__(config, folder)
        self._original = original
        self._before = before
        self._weights = weights

    @property
    def original(self) -> Problem:
        """The problem of the network that the configuration names."""
        return self._original

    @property
    def origin(self) -> tuple[str, ...]:
        """What fingerprints hold beside tensors: the costs, too, of which evaluations hold shares."""
        return (*super().origin, repr(self.whole_costs))

    @cached_property
    def splits(self) -> Splits:
        """The data set, which is loaded once."""
        return self._original.splits

    @cached_property
    def chosen(self) -> Splits:
        """The images that the original network has chosen."""
        return self._original.chosen

    def fresh_model(self) -> nn.Module:
        """Build a network of the pruned network's shapes, with other weights."""
        return copied(self._shaped)

    @cached_property
    def _shaped(self) -> nn.Module:
        original = self._original
        return shaped(original.fresh_model(), original.splits.input_shape, self._before)

    def _rebuilt(self) -> nn.Module:
        return shaped(super()._rebuilt(), self._original.splits.input_shape, self._before)

    @cached_property
    def _traced(self) -> Graph:
        """The groups that the original network has, too: the others keep their width."""
        graph, known = super()._traced, set(self._original.graph.group_names)
        reason = "whole in the network that this one was cut from"
        return leave_whole(graph, {name: reason for name in graph.group_names if name not in known})

    @cached_property
    def dense(self) -> nn.Module:
        """The pruned network that is cut further, in eval mode on the CPU.

        Raises:
            FileError: its weights are damaged.
        """
        model = self.fresh_model()
        load_into(model, load_state_dict(self._weights), str(self._weights))
        return in_eval(model)

    def original_widths(self, widths: tuple[int, ...]) -> tuple[int, ...]:
        """Return widths of this network's groups as widths of all groups of the original network."""
        graph = self._original.graph
        whole = self._before.widths_for(graph.group_names, graph.dense_widths)
        kept = dict(zip(self.graph.group_names, widths, strict=True))
        return tuple(kept.get(name, width) for name, width in zip(graph.group_names, whole, strict=True))
