"""Sequential refit along a symbolic trace: the pruned network is run operation by operation.

When a layer is reached, its weights are solved for from the pruned network's input to the dense network's
output. Where the output is added to another branch, the target is corrected by what that branch got wrong, so
that errors do not pile up along a residual stream (as in He et al., Channel Pruning, ICCV 2017, section 3.2,
"multi-branch"). A layer that runs several times is solved for all its calls at once (``amc.refit.calls``).

What is wanted of the dense network, its outputs at sampled positions, is recorded once and serves every
pruned network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from amc.cutting.modules import Keep
from amc.cutting.slicing import Cut
from amc.graph.columns import Taps, columns, taps_of
from amc.graph.layers import MapNorm, plain_norm
from amc.graph.tied import tied_layers
from amc.graph.unfolding import block_positions, block_rows, has_batch_axis, why_not_linear
from amc.models import OptionAShortcut
from amc.refit.activations import Bounds, bounds_after
from amc.refit.calls import Calls, input_shapes
from amc.refit.images import Progress, RefitImages
from amc.refit.layer import Samples, norm_after, reestimate, refit_layer, select
from amc.refit.operations import Operations, addend, calls_of, norm_node, readers, trace_operations
from amc.refit.walk import Plan, Walk, make_plan


@dataclass(frozen=True)
class _Target:
    """What one layer is refitted to.

    Attributes:
        chosen: (P,) sampled output positions of each block (``amc.graph.unfolding.block_positions``).
        taps: where their inputs lie, block by block.
        rows: (N * P, out) dense outputs there.
        fit: the first rows, which are solved on; the others are held out.
        norm: name of the batch norm's module that alone reads the output, if there is one.
        branch: node whose value is added to the output (after the norm), if it can carry an error.
        branch_rows: (N * P, out) dense values of the branch.
        bounds: of the activation that alone reads the output, after norm and sum, if there is one.
    """

    chosen: tuple[Tensor, ...]
    taps: Sequence[Taps]
    rows: Tensor
    fit: int
    norm: str | None
    branch: str | None = None
    branch_rows: Tensor | None = None
    bounds: Bounds | None = None


class TracedRefit:
    """Refits pruned versions of one network layer by layer, along its symbolic trace.

    Args:
        dense: the dense network, in eval mode.
        images: calibration images; what is still needed of their activations is held in memory.
        positions_per_image: output positions sampled from each image and layer.
        seed: of the choice of positions.
        progress: called with 1 after every operation of the network.

    Raises:
        UntraceableError: the network's forward pass cannot be traced symbolically.
    """

    def __init__(
        self,
        dense: nn.Module,
        images: RefitImages,
        *,
        positions_per_image: int,
        seed: int = 0,
        progress: Progress = None,
    ) -> None:
        self._dense = dense
        self._images = images
        self._targets: dict[str, _Target] = {}
        self._repeated: dict[str, str | None] = {}
        self._reached: set[str] = set()
        self._record(positions_per_image, torch.Generator().manual_seed(seed), progress)
        self._calls: Calls | None = None
        if self._repeated:
            self._calls = Calls(
                dense, images, self._repeated, positions_per_image=positions_per_image, seed=seed
            )

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules in the order in which they are carried out."""
        return tuple(str(node.target) for node in self._operations.nodes if node.op == "call_module")

    @property
    def corrected(self) -> dict[str, str | None]:
        """Operation of a refitted layer -> the operation whose error it makes up for, or None."""
        return {name: target.branch for name, target in self._targets.items()}

    @property
    def solved_rows(self) -> dict[str, int]:
        """Operation of a refitted layer -> the number of rows, the first ones, that it is solved on."""
        return {name: target.fit for name, target in self._targets.items()}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the traced graph out, which does not travel to other processes but is quickly made again."""
        made_again = ("_operations", "_plan", "_plain_plan")
        return {name: value for name, value in vars(self).items() if name not in made_again}

    @cached_property
    def _operations(self) -> Operations:
        return trace_operations(self._dense, self._images.few)

    @cached_property
    def _few_shapes(self) -> dict[str, list[torch.Size]]:
        return input_shapes(self._dense, self._images.few)

    @cached_property
    def _plan(self) -> Plan:
        return make_plan(self._operations, self._dense, folded=True)

    @cached_property
    def _plain_plan(self) -> Plan:
        return make_plan(self._operations, self._dense, folded=False)

    @torch.no_grad()
    def __call__(
        self,
        pruned: nn.Module,
        cut: Cut,
        *,
        ridge: float,
        reestimate_norms: bool,
        activation_rounds: int,
        progress: Progress = None,
    ) -> int:
        """Refit ``pruned`` in place and return how many layers were refitted; see ``SequentialRefit``.

        Raises:
            UntraceableError: it computes something else than the trace; nothing was changed.
        """
        self._operations.prove(pruned, self._images.few)
        modules = dict(pruned.named_modules())
        done: set[str] = set()
        refitted = len(self._targets)
        walk = Walk(self._plain_plan if reestimate_norms else self._plan, pruned, self._images.blocks)
        for place, node in enumerate(self._operations.nodes):
            module = modules.get(str(node.target)) if node.op == "call_module" else None
            if module is not None and node.target in self._repeated:
                if node.target not in done:  # its first call, before any value depends on its weights
                    self._advance(walk, place, progress)
                    done.add(str(node.target))
                    refitted += self._refit_calls(pruned, str(node.target), cut, ridge, reestimate_norms)
            elif node.name in self._targets:
                assert isinstance(module, nn.Conv2d | nn.Linear)
                self._advance(walk, place, progress)
                self._refit(node, module, pruned, walk, cut.keeps, ridge, activation_rounds)
            elif reestimate_norms and isinstance(module, MapNorm) and node.name in self._reached:
                self._advance(walk, place, progress)
                reestimate(module, [walk.values(node.all_input_nodes[0])])
        return refitted

    @staticmethod
    def _advance(walk: Walk, place: int, progress: Progress) -> None:
        count = walk.until(place)
        if progress is not None:
            progress(count)

    def _refit_calls(
        self, pruned: nn.Module, name: str, cut: Cut, ridge: float, reestimate_norms: bool
    ) -> bool:
        """Refit a module that runs several times; return whether it is a layer with new weights."""
        assert self._calls is not None
        if name in self._calls.layers:
            outputs = cut.keeps.get(name, Keep()).outputs
            norm = norm_after(pruned, self._dense, self._repeated[name], outputs)
            return self._calls.refit(pruned, name, norm, outputs, ridge=ridge)
        if reestimate_norms and isinstance(pruned.get_submodule(name), MapNorm):
            self._calls.reestimate(pruned, name)
        return False

    @torch.no_grad()
    def _record(self, positions: int, generator: torch.Generator, progress: Progress) -> None:
        """Run the dense network and keep what its layers deliver."""
        modules = dict(self._dense.named_modules())
        tied = tied_layers(self._dense)
        altered: set[str] = set()
        walk = Walk(self._plain_plan, self._dense, self._images.blocks)
        for place, node in enumerate(self._operations.nodes):
            reached = any(source.name in altered for source in node.all_input_nodes)
            module = modules.get(str(node.target)) if node.op == "call_module" else None
            if reached or self._differs(node):
                altered.add(node.name)
            if reached:
                self._reached.add(node.name)
            if not reached or not isinstance(module, nn.Conv2d | nn.Linear | MapNorm):
                continue
            if len(calls_of(node)) > 1:
                norm = norm_node(node, modules)
                self._repeated[str(node.target)] = str(norm.target) if norm else None
            elif not isinstance(module, MapNorm) and node.target not in tied:
                self._advance(walk, place, progress)
                inputs = walk.values(node.all_input_nodes[0])
                # If it is no plain product, its weight is not what it seems.
                alone = len(node.all_input_nodes) == 1 and has_batch_axis(module, inputs[0].shape)
                if alone and why_not_linear(module, inputs[0][:1].shape) is None:
                    chosen = block_positions(module, inputs, positions, generator)
                    taps = [taps_of(module, *block) for block in zip(inputs, chosen, strict=True)]
                    rows = [len(block) * len(own) for block, own in zip(inputs, chosen, strict=True)]
                    by_image = self._by_image(str(node.target), inputs[0].shape)
                    fit = self._images.solved_rows(rows, by_image=by_image)
                    self._advance(walk, place + 1, progress)
                    self._targets[node.name] = self._target(node, modules, walk, altered, chosen, taps, fit)

    def _by_image(self, name: str, shape: torch.Size) -> bool:
        """Whether the first axis of a layer's input grows with the images, and holds no tokens of a sequence.

        Args:
            shape: of the input for the first block of images.
        """
        if not self._images.held_out or len(shape) != 3:  # maps and vectors have the images first
            return True
        few = self._few_shapes[name][0]
        return few[0] * len(self._images.blocks[0]) == shape[0] * len(self._images.few)

    def _target(
        self,
        node: fx.Node,
        modules: Mapping[str, nn.Module],
        walk: Walk,
        altered: set[str],
        chosen: tuple[Tensor, ...],
        taps: Sequence[Taps],
        fit: int,
    ) -> _Target:
        norm = norm_node(node, modules)
        name = str(norm.target) if norm else None
        module = modules[str(node.target)]
        output = walk.values(node)
        rows = block_rows(module, output, chosen)
        tail = norm or node
        if norm is not None and not plain_norm(modules[str(norm.target)]):
            return _Target(chosen, taps, rows, fit, name)  # an activation in it: nothing is seen through it
        other = addend(tail)
        if other is None:
            return _Target(chosen, taps, rows, fit, name, bounds=bounds_after(tail, modules))
        if other.name not in altered or not walk.alive(other) or not _alike(walk.values(other)[0], output[0]):
            return _Target(chosen, taps, rows, fit, name)
        bounds = bounds_after(readers(tail)[0], modules)
        branch_rows = block_rows(module, walk.values(other), chosen)
        return _Target(chosen, taps, rows, fit, name, other.name, branch_rows, bounds)

    def _differs(self, node: fx.Node) -> bool:
        """Whether an operation may give other results in a pruned network for the same input."""
        if node.op == "call_module":
            module = self._dense.get_submodule(str(node.target))
            return isinstance(module, OptionAShortcut) or any(True for _ in module.parameters())
        return node.op == "get_attr" and node.target not in self._operations.constants

    def _refit(
        self,
        node: fx.Node,
        module: nn.Conv2d | nn.Linear,
        pruned: nn.Module,
        walk: Walk,
        keeps: Mapping[str, Keep],
        ridge: float,
        activation_rounds: int,
    ) -> None:
        """Give a layer of the pruned network its new weights before it runs."""
        target = self._targets[node.name]
        outputs = keeps.get(str(node.target), Keep()).outputs
        norm = norm_after(pruned, self._dense, target.norm, outputs)
        like = module.weight
        plain = like.new_ones(len(like)), like.new_zeros(len(like))
        scale, offset = plain if norm is None else norm.affine()
        rows = select(target.rows, outputs)
        if target.branch is not None and target.branch_rows is not None:
            other = next(each for each in self._operations.nodes if each.name == target.branch)
            branch = block_rows(module, walk.values(other), target.chosen)
            error = select(target.branch_rows, outputs) - branch
            rows = rows + error * torch.where(scale == 0, scale, 1 / scale)
            offset = offset + branch
        blocks = zip(walk.values(node.all_input_nodes[0]), target.taps, strict=True)
        inputs = (columns(module, *block) for block in blocks)
        samples = Samples(inputs, rows, scale, offset.expand_as(rows), target.fit, target.bounds)
        refit_layer(module, samples, norm, ridge=ridge, rounds=activation_rounds)


def _alike(value: Any, output: Any) -> bool:
    """Whether a value has the shape of a layer's output."""
    return isinstance(value, Tensor) and value.shape == output.shape
