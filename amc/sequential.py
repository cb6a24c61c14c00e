"""Sequential refit of a pruned network: each layer sees what the layers before it really deliver.

The refit of the search assumes dense inputs, so that it can be looked up. For the network that is kept,
dense and pruned network are run in lockstep over the calibration images instead: when a layer is reached, its
weights are solved for from the pruned network's input to the dense network's output. Where the output is
added to another branch, the target is corrected by what that branch got wrong, so that errors do not pile up
along a residual stream (as in He et al., Channel Pruning, ICCV 2017, section 3.2, "multi-branch").
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from amc.errors import AmcError
from amc.models import OptionAShortcut
from amc.pruning import Keep
from amc.reconstruction import layer_patches, layer_rows, sample_positions, solve_rows

_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}


@torch.no_grad()
def sequential_refit(
    dense: nn.Module,
    pruned: nn.Module,
    keeps: Mapping[str, Keep],
    images: Tensor,
    *,
    positions_per_image: int = 32,
    ridge: float = 1e-4,
    reestimate_norms: bool = True,
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
) -> int:
    """Refit ``pruned`` in place, layer by layer in forward order.

    Args:
        dense: the dense network, in eval mode.
        pruned: the cut network, in eval mode.
        keeps: kept indices of every module's axes (``SlicePlan.keeps``).
        images: calibration images (N, C, H, W); their activations are held in memory at once.
        positions_per_image: output positions sampled from each image and layer.
        reestimate_norms: whether batch norms take their statistics from the pruned network.
        progress: called with 1 after every operation of the network.

    Returns:
        How many layers were refitted.

    Raises:
        AmcError: the network's forward pass cannot be traced symbolically.
    """
    try:
        graph = _Tracer().trace(dense)
    except Exception as error:  # data-dependent control flow and the like, of many types
        reason = str(error).strip().split("\n", 1)[0]
        raise AmcError(
            f"{type(dense).__name__} cannot be traced for the sequential refit: {reason}"
        ) from error
    walk = _Lockstep(graph, (dense, pruned), keeps, positions_per_image, ridge, reestimate_norms, seed)
    return walk.run(images, progress)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, OptionAShortcut) or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class _Pair:
    """A value in the dense and in the pruned network; one object as long as they cannot differ."""

    dense: Any
    pruned: Any

    @property
    def equal(self) -> bool:
        return self.dense is self.pruned


class _Lockstep:
    """Runs one traced graph with the modules of both networks, node by node."""

    def __init__(
        self,
        graph: fx.Graph,
        roots: tuple[nn.Module, nn.Module],
        keeps: Mapping[str, Keep],
        positions: int,
        ridge: float,
        reestimate: bool,
        seed: int,
    ) -> None:
        self._nodes = list(graph.nodes)
        self._roots = roots
        self._modules = tuple(dict(root.named_modules()) for root in roots)
        self._keeps = keeps
        self._positions = positions
        self._ridge = ridge
        self._reestimate = reestimate
        self._generator = torch.Generator().manual_seed(seed)
        self._values: dict[fx.Node, _Pair] = {}
        self._last_use = {source: node for node in self._nodes for source in node.all_input_nodes}

    def run(self, images: Tensor, progress: Callable[[int], Any] | None) -> int:
        """Walk the graph; return how many layers were refitted."""
        refitted = 0
        for node in self._nodes:
            if node.op == "output":
                break
            if node.op == "placeholder":
                self._values[node] = _Pair(images, images)
            else:
                refitted += self._prepare(node)
                self._values[node] = self._execute(node)
            for source in node.all_input_nodes:
                if self._last_use[source] is node:
                    del self._values[source]
            if progress is not None:
                progress(1)
        return refitted

    def _execute(self, node: fx.Node) -> _Pair:
        value = self._call(node, 0)
        if all(self._values[source].equal for source in node.all_input_nodes) and not self._differs(node):
            return _Pair(value, value)
        return _Pair(value, self._call(node, 1))

    def _differs(self, node: fx.Node) -> bool:
        """Whether an operation may give other results in the pruned network for the same input."""
        if node.op == "call_module":
            module = self._modules[0][str(node.target)]
            return isinstance(module, OptionAShortcut) or any(True for _ in module.parameters())
        return node.op == "get_attr"

    def _call(self, node: fx.Node, side: int) -> Any:
        def value(source: fx.Node) -> Any:
            pair = self._values[source]
            return pair.pruned if side else pair.dense

        arguments = fx.map_arg(node.args, value)
        options = fx.map_arg(node.kwargs, value)
        target = node.target
        if callable(target):
            return target(*arguments, **options)
        match node.op:
            case "call_module":
                return self._modules[side][target](*arguments, **options)
            case "call_method":
                return getattr(arguments[0], target)(*arguments[1:], **options)
            case _:
                return operator.attrgetter(target)(self._roots[side])

    def _prepare(self, node: fx.Node) -> int:
        """Give a module of the pruned network its new weights before it runs; return 1 if it was refitted."""
        if node.op != "call_module" or (inputs := self._values[node.all_input_nodes[0]]).equal:
            return 0
        module = self._modules[1][str(node.target)]
        if isinstance(module, nn.BatchNorm2d) and self._reestimate:
            _reestimate(module, inputs.pruned)
        if not isinstance(module, nn.Conv2d | nn.Linear) or _grouped(module):
            return 0
        self._refit(node, module, inputs)
        return 1

    def _refit(self, node: fx.Node, module: nn.Conv2d | nn.Linear, inputs: _Pair) -> None:
        name = str(node.target)
        outputs = self._keeps.get(name, Keep()).outputs
        target = _select(self._modules[0][name](inputs.dense), outputs)
        norm = self._norm_after(node)
        error = self._branch_error(node, norm, outputs)
        if error is not None:
            target = target + error
        chosen = sample_positions(module, inputs.pruned, self._positions, self._generator)
        weight, shift = solve_rows(
            layer_patches(module, inputs.pruned, chosen),
            layer_rows(target, chosen),
            module.weight,
            depthwise=isinstance(module, nn.Conv2d) and module.groups > 1,
            intercept=module.bias is not None or norm is not None,
            ridge=self._ridge,
        )
        module.weight.copy_(weight)
        if module.bias is not None:
            module.bias.copy_(shift)
        elif norm is not None:
            dense, pruned = (modules[str(norm.target)] for modules in self._modules)
            pruned.running_mean.copy_(_select(dense.running_mean, outputs, dim=0) - shift)

    def _norm_after(self, node: fx.Node) -> fx.Node | None:
        users = list(node.users)
        if len(users) != 1 or users[0].op != "call_module":
            return None
        module = self._modules[1][str(users[0].target)]
        tracked = isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
        return users[0] if tracked else None

    def _branch_error(self, node: fx.Node, norm: fx.Node | None, outputs: Tensor | None) -> Tensor | None:
        """What the other operand of a sum lacks in the pruned network, in units of the layer's output."""
        tail = norm or node
        users = list(tail.users)
        if len(users) != 1 or users[0].target not in _ADDITIONS:
            return None
        other = next((s for s in users[0].all_input_nodes if s is not tail), None)
        pair = self._values.get(other) if other is not None else None
        if pair is None or pair.equal:
            return None
        error = _select(pair.dense, outputs) - pair.pruned
        if norm is None:
            return error
        return error * _inverse_scale(self._modules[1][str(norm.target)])[:, None, None]


def _grouped(module: nn.Module) -> bool:
    """Whether a layer is a convolution in groups, but not depthwise; it keeps the weights that it has."""
    if not isinstance(module, nn.Conv2d):
        return False
    return module.groups > 1 and not module.groups == module.in_channels == module.out_channels


def _inverse_scale(norm: nn.Module) -> Tensor:
    """1 / (slope of a batch norm) per channel; 0 where the slope is too flat to correct anything."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.affine:
        scale = scale * norm.weight
    flat = scale.abs() < 0.05 * scale.abs().mean()
    return torch.where(flat, torch.zeros_like(scale), 1 / scale)


def _reestimate(norm: nn.BatchNorm2d, inputs: Tensor) -> None:
    if norm.running_mean is None or norm.running_var is None:
        return
    variance, mean = torch.var_mean(inputs.double(), dim=(0, 2, 3))
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


def _select(tensor: Tensor, indices: Tensor | None, dim: int = 1) -> Tensor:
    return tensor if indices is None else tensor.index_select(dim, indices)
