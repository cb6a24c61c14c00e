"""Quantized networks in PyTorch's own operators (``quantized_decomposed``), with the same numbers.

Converters recognise these operators; files that hold them run without this project.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.ao.quantization.fx import _decomposed
from torch.export import ExportedProgram

from amc.errors import AmcError
from amc.quantization.layers import DynamicLayer, IntegerLayer, IntegerSum, RoundTrip, StandIn, applied
from amc.quantization.operators import HIGH, LOW, measured
from amc.quantization.program import CLIPS, aten
from amc.scoring.run import copied

assert _decomposed  # it registers the operators
_ops = torch.ops.quantized_decomposed
_SIGNED = 128
"""What turns unsigned into signed 8-bit integers; a zero point moves with them, so values stay."""
_EPSILON = torch.finfo(torch.float32).eps


class _Grid(nn.Module):
    """An activation on its grid, as quantize and dequantize."""

    def __init__(self, grid: RoundTrip, *, signed: bool) -> None:
        super().__init__()
        scale, zero = float(grid.get_buffer("scale")), int(grid.get_buffer("zero_point"))
        shift = _SIGNED if signed else 0
        kind = torch.int8 if signed else torch.uint8
        self._given = (scale, zero - shift, LOW - shift, HIGH - shift, kind)

    def forward(self, values: Tensor) -> Tensor:
        whole = _ops.quantize_per_tensor.default(values, *self._given)
        found: Tensor = _ops.dequantize_per_tensor.default(whole, *self._given)
        return found


class _Layer(StandIn):
    """A layer whose integer weights are dequantized where they are used.

    Args:
        layer: with integer weights.
        twice: whether the weights are stored as the float numbers that the integers mean, and quantized again
            where they are used: the converter of LiteRT folds that into the same integers.
    """

    bias: Tensor | None

    def __init__(self, layer: IntegerLayer, *, twice: bool) -> None:
        super().__init__()
        self.inputs, self.block, self.shape = layer.inputs, layer.block, layer.shape
        self.twice = twice
        scale = layer.get_buffer("scale")
        stored = layer.weight.detach().clone() if twice else layer.get_buffer("integers")
        self.register_buffer("stored", stored)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", torch.zeros(scale.shape, dtype=torch.int64))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())
        self.layer = layer.layer

    @property
    def weight(self) -> Tensor:
        """The float32 weights, which a forward pass may read directly."""
        found: Tensor
        if self.block:
            groups = (self.scale, self.zero, -127, 127, torch.int8, self.block, torch.float32)
            found = _ops.dequantize_per_channel_group.default(self.stored, *groups).reshape(self.shape)
        else:
            grid = (self.scale, self.zero, 0, -127, 127, torch.int8)
            whole = _ops.quantize_per_channel.default(self.stored, *grid) if self.twice else self.stored
            found = _ops.dequantize_per_channel.default(whole, *grid)
        return found

    def forward(self, input: Tensor) -> Tensor:
        values = input if self.inputs is None else self.inputs(input)
        return applied(self.layer, values, self.weight, self.bias)


class _Sum(nn.Module):
    """A sum in float, which kernels on integers take over where all around it is on grids."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right


class _MeasuredLayer(StandIn):
    """A layer that measures the range of its input in every call, without an operator of this project."""

    integers: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        for name in ("integers", "scale", "bias"):
            self.register_buffer(name, getattr(layer, name))
        self.layer = layer.layer

    def forward(self, input: Tensor) -> Tensor:
        whole, step = measured(input)
        sums = applied(self.layer, whole, self.integers.to(input.dtype), None)
        shape = (-1,) if isinstance(self.layer, nn.Linear) else (-1, 1, 1)
        return sums * (step * self.scale).reshape(shape) + self.bias.reshape(shape)


class _RowwiseLinear(nn.Module):
    """A linear layer with float outputs, whose input gets 8 bits in the range of each row.

    Kernels on integers have either integer outputs or such inputs. Within its range, a row that is on a grid
    already gets steps that are no coarser than that grid's.
    """

    def __init__(self, layer: _Layer) -> None:
        super().__init__()
        self.of = layer

    def forward(self, values: Tensor) -> Tensor:
        scale, zero = _ops.choose_qparams_per_token_asymmetric.default(values, torch.int8)
        grid = (scale, zero, -128, 127, torch.int8)
        whole = _ops.quantize_per_token.default(values, *grid)
        rows = _ops.dequantize_per_token.default(whole, *grid, torch.float32)
        return F.linear(rows, self.of.weight, self.of.bias)


class _FloatLayer(nn.Module):
    """A layer whose weights are multiplied out."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: IntegerLayer) -> None:
        super().__init__()
        self.layer, self.inputs = layer.layer, layer.inputs
        self.register_buffer("weight", layer.weight.detach().clone())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    def forward(self, values: Tensor) -> Tensor:
        values = values if self.inputs is None else self.inputs(values)
        return applied(self.layer, values, self.weight, self.bias)


def explicit(model: nn.Module, *, signed: bool = False, twice: bool = False) -> nn.Module:
    """Return a copy of a quantized network that is made of PyTorch's own operators.

    Args:
        model: of ``amc.quantization.simulation``; it is left as it is.
        signed: whether activations are from -128 to 127 instead of 0 to 255; they mean the same values.
        twice: see ``_Layer``.
    """

    def written(module: nn.Module) -> nn.Module | None:
        if isinstance(module, RoundTrip):
            return _Grid(module, signed=signed)
        if isinstance(module, IntegerSum):
            return _Sum()
        if isinstance(module, DynamicLayer):
            return _MeasuredLayer(module)
        return _Layer(module, twice=twice) if isinstance(module, IntegerLayer) else None

    return _replaced(_replaced(copied(model), written), written)  # the second time for ``inputs``


def for_integer_kernels(model: nn.Module, *, rowwise: bool = False, twice: bool = False) -> nn.Module:
    """Return a copy of a quantized network for runtimes with kernels on signed integers alone.

    A clip before a grid that ends where the clip does is left out. Layers whose outputs are not on a grid get
    float weights, or inputs in the range of each row.

    Args:
        model: of ``amc.quantization.simulation``, exported as a graph.
        rowwise: whether the runtime has linear layers with inputs in the range of each row.
        twice: see ``_Layer``.

    Raises:
        AmcError: the network was not exported as a graph, so that outputs of layers are not on grids.
    """
    if not isinstance(model, fx.GraphModule):
        raise AmcError(
            "only inputs and weights of its layers are quantized (placement modules), and kernels on "
            "integers need outputs on grids, too"
        )
    network = copied(model)
    _drop_clips(network)
    kept = _with_integer_outputs(network)

    def written(module: nn.Module) -> nn.Module | None:
        if not isinstance(module, IntegerLayer) or module in kept:
            return None
        is_rows = rowwise and isinstance(module.layer, nn.Linear) and module.inputs is None
        return _RowwiseLinear(_Layer(module, twice=False)) if is_rows else _FloatLayer(module)

    return explicit(_replaced(network, written), signed=True, twice=twice)


def with_own_values(program: ExportedProgram) -> ExportedProgram:
    """Dequantize an activation anew for every reader, in place: XNNPACK fuses it with each."""
    graph = program.graph
    for node in list(graph.nodes):
        if node.target is not _ops.dequantize_per_tensor.default:
            continue
        for user in list(node.users)[1:]:
            with graph.inserting_after(node):
                own = graph.node_copy(node)
            user.replace_input_with(node, own)
    program.graph_module.recompile()
    return program


def _replaced(model: nn.Module, written: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if (made := written(module)) is not None:
            if not name:
                return made
            model.set_submodule(name, made)
    return model


def _with_integer_outputs(network: fx.GraphModule) -> set[nn.Module]:
    """Return the layers whose outputs go through a grid and nowhere else."""
    found = set()
    for node, module in _calls(network, IntegerLayer):
        (user, *others) = node.users
        if user.target in CLIPS and len(user.users) == 1:
            (user,) = user.users
        target = network.get_submodule(str(user.target)) if user.op == "call_module" else None
        if not others and isinstance(target, RoundTrip):
            found.add(module)
    return found


def _drop_clips(network: fx.GraphModule) -> None:
    for node, grid in _calls(network, RoundTrip):
        (clip,) = node.all_input_nodes
        if clip.target in CLIPS and len(clip.users) == 1 and _is_within(grid, *_limits(clip)):
            node.replace_input_with(clip, clip.all_input_nodes[0])
            network.graph.erase_node(clip)
    network.recompile()


def _calls(network: fx.GraphModule, kind: type[nn.Module]) -> list[tuple[fx.Node, nn.Module]]:
    nodes = [node for node in network.graph.nodes if node.op == "call_module"]
    pairs = [(node, network.get_submodule(str(node.target))) for node in nodes]
    return [(node, module) for node, module in pairs if isinstance(module, kind)]


def _is_within(grid: nn.Module, low: float, high: float) -> bool:
    """Return whether no value beyond ``low`` and ``high`` is on a grid, but for the rounding of its scale."""
    scale, zero = float(grid.scale), int(grid.zero_point)  # type: ignore[arg-type]
    ends = ((LOW - zero) * scale, (HIGH - zero) * scale)
    slack = 4 * _EPSILON * max(abs(end) for end in ends)
    return low - slack <= ends[0] and ends[1] <= high + slack


def _limits(clip: fx.Node) -> tuple[float, float]:
    if clip.target is aten.relu.default:
        return 0.0, math.inf
    low, high, *_ = (*clip.args[1:3], None, None)
    least, most = (-1.0, 1.0) if clip.target is aten.hardtanh.default else (-math.inf, math.inf)
    return (
        least if low is None else float(low),  # type: ignore[arg-type]
        most if high is None else float(high),
    )
