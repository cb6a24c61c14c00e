"""Sequential refit of a pruned network: each layer sees what the layers before it really deliver.

The refit of the search assumes dense inputs, so that it can be looked up. Here the pruned network is run over
calibration images, operation by operation: when a layer is reached, its weights are solved for from the
pruned network's input to the dense network's output. Where the output is added to another branch, the target
is corrected by what that branch got wrong, so that errors do not pile up along a residual stream (as in He et
al., Channel Pruning, ICCV 2017, section 3.2, "multi-branch").

What is wanted of the dense network, its outputs at sampled positions, is recorded once and serves every
pruned network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from amc.cutting.modules import Keep
from amc.cutting.slicing import Cut
from amc.errors import AmcError, first_line
from amc.graph.layers import plain_norm
from amc.graph.unfolding import POSITION_BLOCK, block_patches, block_positions, block_rows, why_not_linear
from amc.models import OptionAShortcut
from amc.refit.activations import Bounds, bounds_after, passing, revision
from amc.refit.least_squares import HeldOut, Problem, solve_rows
from amc.refit.nested import shrinkage
from amc.refit.operations import _addend, _call, _norm_after, _run, _Tracer, _Values, branches_first
from amc.scoring.layout import memory_format_of

Progress = Callable[[int], Any] | None


@dataclass(frozen=True)
class _Target:
    """What one layer is refitted to.

    Attributes:
        chosen: (blocks, P) sampled output positions (``amc.graph.unfolding.block_positions``).
        rows: (N * P, out) dense outputs there.
        norm: name of the batch norm's module that alone reads the output, if there is one.
        branch: node whose value is added to the output (after the norm), if it can carry an error.
        branch_rows: (N * P, out) dense values of the branch.
        bounds: of the activation that alone reads the output, after norm and sum, if there is one.
    """

    chosen: Tensor
    rows: Tensor
    norm: str | None
    branch: str | None = None
    branch_rows: Tensor | None = None
    bounds: Bounds | None = None


class SequentialRefit:
    """Refits pruned versions of one network layer by layer, in forward order.

    Args:
        dense: the dense network, in eval mode.
        images: calibration images (N, C, H, W); what is still needed of their activations is held in memory.
        positions_per_image: output positions sampled from each image and layer.
        held_out: share of the images, the last ones (which should be of all classes, see
            ``amc.data.splits.stratified_pick``), that no layer is solved on: on those the ridge of every
            layer is chosen (``amc.refit.least_squares``), which needs some hundred images and up to twice
            the time of solving.
        progress: called with 1 after every operation of the network.

    Raises:
        AmcError: the network's forward pass cannot be traced symbolically.
    """

    def __init__(
        self,
        dense: nn.Module,
        images: Tensor,
        *,
        positions_per_image: int = 32,
        held_out: float = 0.0,
        seed: int = 0,
        progress: Progress = None,
    ) -> None:
        self._dense = dense
        layout = memory_format_of(dense, images[:2])
        self._images = images.contiguous(memory_format=layout).split(POSITION_BLOCK)
        self._count = len(images)
        self._held_out = int(held_out * len(images))
        self._targets: dict[str, _Target] = {}
        self._record(positions_per_image, torch.Generator().manual_seed(seed), progress)

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules in the order in which they are carried out."""
        return tuple(str(node.target) for node in self._nodes if node.op == "call_module")

    @property
    def corrected(self) -> dict[str, str | None]:
        """Operation of a refitted layer -> the operation whose error it makes up for, or None."""
        return {name: target.branch for name, target in self._targets.items()}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the traced graph out, which does not travel to other processes but is quickly made again."""
        return {name: value for name, value in vars(self).items() if name != "_nodes"}

    @cached_property
    def _nodes(self) -> list[fx.Node]:
        try:
            graph = _Tracer().trace(self._dense)
        except Exception as error:  # data-dependent control flow and the like, of many types
            reason = first_line(error)
            raise AmcError(
                f"{type(self._dense).__name__} cannot be traced for the sequential refit: {reason}"
            ) from error
        nodes = [node for node in graph.nodes if node.op != "output"]
        modules = dict(self._dense.named_modules())
        sooner = branches_first(nodes, modules)
        wanted = graph.output_node().all_input_nodes
        found = [_run(order, self._dense, modules, self._images[0][:2], wanted) for order in (nodes, sooner)]
        same = all(
            isinstance(one, Tensor) and torch.equal(one, other) for one, other in zip(*found, strict=True)
        )
        return sooner if same else nodes  # an operation in place can forbid another order

    @torch.no_grad()
    def __call__(
        self,
        pruned: nn.Module,
        cut: Cut,
        *,
        ridge: float = 1e-4,
        reestimate_norms: bool = True,
        activation_rounds: int = 0,
        progress: Progress = None,
    ) -> int:
        """Refit ``pruned`` in place and return how many layers were refitted.

        Args:
            pruned: in eval mode, on the device of the calibration images.
            cut: which channels of the dense network it has.
            ridge: see ``amc.refit.least_squares.solve_rows``; the least one, with images held out.
            reestimate_norms: whether batch norms take their statistics from the pruned network. What least
                squares cannot explain it leaves out, so outputs vary less than the dense ones; new statistics
                restore the scale, errors included. That is better where much is lost at every layer, and
                worse where little is: compare the two on the network at hand.
            activation_rounds: how often a layer before a ReLU is solved again with what the ReLU cuts off
                left free (``amc.refit.activations``).
        """
        modules = dict(pruned.named_modules())
        altered: set[str] = set()
        for node, values in self._walk(pruned, modules, progress, carried_out=False):
            if not any(source.name in altered for source in node.all_input_nodes):
                if self._differs(node):
                    altered.add(node.name)
                continue
            altered.add(node.name)
            module = modules.get(str(node.target)) if node.op == "call_module" else None
            if reestimate_norms and isinstance(module, nn.BatchNorm2d):
                _reestimate(module, values[node.all_input_nodes[0]])
            elif node.name in self._targets:
                assert isinstance(module, nn.Conv2d | nn.Linear)
                self._refit(node, module, modules, values, cut.keeps, ridge, activation_rounds)
        return len(self._targets)

    def _walk(
        self, root: nn.Module, modules: Mapping[str, nn.Module], progress: Progress, *, carried_out: bool
    ) -> Iterator[tuple[fx.Node, _Values]]:
        """Run the graph, every operation on all blocks of images before the next.

        Yields:
            Every operation, before or after it is ``carried_out``, with the values that are alive.
        """
        last_use = {source: node for node in self._nodes for source in node.all_input_nodes}
        values: _Values = {}
        for node in self._nodes:
            if node.op == "placeholder":
                values[node] = [block.clone() for block in self._images]  # the network may work in place
                continue
            if not carried_out:
                yield node, values
            inputs = {source: values[source] for source in node.all_input_nodes}
            values[node] = [
                _call(node, {source: blocks[place] for source, blocks in inputs.items()}, root, modules)
                for place in range(len(self._images))
            ]
            if carried_out:
                yield node, values
            for source in node.all_input_nodes:
                if last_use[source] is node:
                    del values[source]
            if progress is not None:
                progress(1)

    @torch.no_grad()
    def _record(self, positions: int, generator: torch.Generator, progress: Progress) -> None:
        """Run the dense network and keep what its layers deliver."""
        modules = dict(self._dense.named_modules())
        altered: set[str] = set()
        for node, values in self._walk(self._dense, modules, progress, carried_out=True):
            reached = any(source.name in altered for source in node.all_input_nodes)
            module = modules.get(str(node.target)) if node.op == "call_module" else None
            if reached and isinstance(module, nn.Conv2d | nn.Linear):
                inputs = values[node.all_input_nodes[0]]
                if why_not_linear(module, inputs[0][:1].shape) is not None:  # its weight is not what it seems
                    altered.add(node.name)
                    continue
                chosen = block_positions(module, inputs, positions, generator)
                self._targets[node.name] = self._target(node, modules, values, altered, chosen)
            if reached or self._differs(node):
                altered.add(node.name)

    def _target(
        self,
        node: fx.Node,
        modules: Mapping[str, nn.Module],
        values: _Values,
        altered: set[str],
        chosen: Tensor,
    ) -> _Target:
        norm = _norm_after(node, modules)
        name = str(norm.target) if norm else None
        module = modules[str(node.target)]
        output = values[node]
        rows = block_rows(module, output, chosen)
        tail = norm or node
        if norm is not None and not plain_norm(modules[str(norm.target)]):
            return _Target(chosen, rows, name)  # an activation in it: nothing is seen through it
        other = _addend(tail)
        if other is None:
            return _Target(chosen, rows, name, bounds=bounds_after(tail, modules))
        value = values.get(other)
        if other.name not in altered or value is None or not _alike(value[0], output[0]):
            return _Target(chosen, rows, name)
        bounds = bounds_after(next(iter(tail.users)), modules)
        return _Target(chosen, rows, name, other.name, block_rows(module, value, chosen), bounds)

    def _differs(self, node: fx.Node) -> bool:
        """Whether an operation may give other results in a pruned network for the same input."""
        if node.op == "call_module":
            module = self._dense.get_submodule(str(node.target))
            return isinstance(module, OptionAShortcut) or any(True for _ in module.parameters())
        return node.op == "get_attr"

    def _refit(
        self,
        node: fx.Node,
        module: nn.Conv2d | nn.Linear,
        modules: Mapping[str, nn.Module],
        values: _Values,
        keeps: Mapping[str, Keep],
        ridge: float,
        activation_rounds: int,
    ) -> None:
        """Give a layer of the pruned network its new weights before it runs."""
        target = self._targets[node.name]
        outputs = keeps.get(str(node.target), Keep()).outputs
        norm = modules[target.norm] if target.norm else None
        scale, offset = self._affine(target, norm, outputs, like=module.weight)
        bounds = target.bounds if activation_rounds else None  # a plain refit has no work added
        rows = _select(target.rows, outputs)
        if target.branch is not None and target.branch_rows is not None:
            value = next(value for source, value in values.items() if source.name == target.branch)
            branch = block_rows(module, value, target.chosen)
            error = _select(target.branch_rows, outputs) - branch
            rows = rows + error * torch.where(scale == 0, scale, 1 / scale)
            offset = offset + branch
        patches = block_patches(module, values[node.all_input_nodes[0]], target.chosen)
        offset = offset.expand_as(rows)
        fit = len(rows) - self._held_out * (len(rows) // self._count)
        problem = Problem(
            patches[:fit],
            rows[:fit],
            module.weight,
            groups=getattr(module, "groups", 1),
            intercept=module.bias is not None or norm is not None,
        )
        judged = HeldOut(patches[fit:], rows[fit:], passing(scale, offset[fit:], target.bounds))
        weight, shift = solve_rows(
            problem,
            ridge=ridge if self._held_out else shrinkage(ridge, module.weight[0].numel(), fit),
            held_out=judged if self._held_out else None,
            revise=revision(rows[:fit], scale, offset[:fit], bounds) if bounds else None,
            rounds=activation_rounds,
        )
        module.weight.copy_(weight)
        if module.bias is not None:
            module.bias.copy_(shift)
        elif norm is not None:
            dense = self._dense.get_submodule(str(target.norm))
            norm.running_mean.copy_(_select(dense.running_mean, outputs, dim=0) - shift)  # type: ignore

    def _affine(
        self, target: _Target, norm: nn.Module | None, outputs: Tensor | None, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the norm after a layer makes of its output: scale (0 if too flat to correct), and offset."""
        if norm is None:
            return like.new_ones(len(like)), like.new_zeros(len(like))
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_var is not None
        scale = torch.rsqrt(norm.running_var + norm.eps)
        mean = self._dense.get_submodule(str(target.norm)).running_mean
        assert isinstance(mean, Tensor)
        if norm.affine:
            scale = scale * norm.weight
        offset = -_select(mean, outputs, dim=0) * scale + (norm.bias if norm.affine else 0)
        flat = scale.abs() < 0.05 * scale.abs().mean()
        return torch.where(flat, torch.zeros_like(scale), scale), offset


def _alike(value: Any, output: Any) -> bool:
    """Whether a value has the shape of a layer's output."""
    return isinstance(value, Tensor) and value.shape == output.shape


def _reestimate(norm: nn.BatchNorm2d, blocks: Sequence[Tensor]) -> None:
    """Take the statistics of blocks of inputs (N, C, H, W)."""
    if norm.running_mean is None or norm.running_var is None:
        return
    count = sum(block.numel() for block in blocks) // blocks[0].shape[1]
    total = [block.sum((0, 2, 3), dtype=torch.float64) for block in blocks]
    mean = torch.stack(total).sum(0) / count
    centre = mean.to(blocks[0].dtype)[:, None, None]
    squares = [(block - centre).square().sum((0, 2, 3), dtype=torch.float64) for block in blocks]
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(torch.stack(squares).sum(0) / max(count - 1, 1))


def _select(tensor: Tensor, indices: Tensor | None, dim: int = 1) -> Tensor:
    return tensor if indices is None else tensor.index_select(dim, indices.to(tensor.device))
