"""A network as a program of operators, with batch norms folded into layers, and where it can be quantized."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from amc.errors import first_line
from amc.quantization.description import FloatLayer
from amc.quantization.layers import Quantizable, conv, linear
from amc.scoring.run import copied
from amc.third_party import FIXED_BATCH, quiet

aten = torch.ops.aten
_CONVS = (aten.conv2d.default, aten.conv2d.padding)
_NORM = aten._native_batch_norm_legit_no_training.default
CLIPS = (aten.relu.default, aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default)
"""Activations that a grid computes for free, as its ends cut off what they do."""
_PASSES = frozenset(
    {
        *(aten.max_pool2d.default, aten.view.default, aten.reshape.default, aten.flatten.using_ints),
        *(aten.clone.default, aten.dropout.default, aten.permute.default, aten.transpose.int),
        *(aten.slice.Tensor, aten.squeeze.dims, aten.squeeze.dim, aten.unsqueeze.default),
        *(aten.index_select.default, aten.alias.default, aten.contiguous.default, aten._to_copy.default),
        *(aten.select.int, aten._unsafe_view.default, aten.squeeze.default),
        *(aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default),
    }
)
"""Operators whose outputs are some of their inputs: both have one grid."""
_SPLITS = frozenset({aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default})
"""Operators that return some of their inputs in several parts."""
_JOINS = frozenset({aten.add.Tensor, aten.cat.default})
"""Operators on several maps, which runtimes compute on integers."""
_DROPPED = ("_assert", "sym_constrain_range")
Visit = Callable[[str, Tensor], None]
"""Called with the name of an activation, and its values."""


@dataclass(frozen=True)
class Site:
    """A layer that can be quantized.

    Attributes:
        name: see ``amc.quantization.description.QuantizedLayer``.
        path: name of its module in the program's network.
        kind: ``conv`` or ``linear``.
        weight, bias: names of its tensors in the float network; no bias is None.
        others: further layers that hold the same weight.
    """

    name: str
    path: str
    kind: str
    weight: str
    bias: str | None
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class FoldedNorm:
    """A batch norm that was folded into a layer.

    Attributes:
        name: of its module.
        gain, offset: its weight and bias, (channels,) float32. They are also deviation and mean of what the
            layer computes with the norm, if the norm has the statistics of its inputs.
    """

    name: str
    gain: Tensor
    offset: Tensor


class GraphProgram:
    """An exported network: batch norms are folded, and activations fused.

    Args:
        model: the exported program; it is changed.
        network: the network, for the names of layers that cannot be quantized.

    Attributes:
        norms: layer -> the batch norm that was folded into it.
        kept: names of the network's tensors that are also used outside of ``sites`` and folded norms.
        images: name of the activation that holds the images.
    """

    placement = "graph"

    def __init__(self, model: fx.GraphModule, network: nn.Module) -> None:
        self.model = model
        self._nodes: dict[str, fx.Node] = {}
        self.norms: dict[str, FoldedNorm] = {}
        self._owners = _owners(network)
        self.sites: tuple[Site, ...] = tuple(self._found_sites())
        model.graph.eliminate_dead_code()
        model.delete_all_unused_submodules()
        model.recompile()
        self.kept = frozenset(name for node in model.graph.nodes if (name := _name_of(node)) is not None)
        known = {site.name.split("#")[0] for site in self.sites}
        tied = {name for site in self.sites for name in site.others}
        self.left_float = tuple(_not_quantizable(network, known, tied))
        self._names = _names(model.graph, self._nodes)
        self.images = next(self._names[node] for node in model.graph.nodes if node.op == "placeholder")

    def _found_sites(self) -> Iterator[Site]:
        """Put a module in place of every layer whose weights are stored, batch norm folded."""
        counts: dict[str, int] = {}
        graph = self.model.graph
        for node in list(graph.nodes):
            if node.op != "call_function":
                continue
            if any(word in str(node.target) for word in _DROPPED) and not node.users:
                graph.erase_node(node)
                continue
            found = self._layer(node)
            if found is None:
                continue
            layer, norm = found
            weight, bias = (_name_of(_arguments(node)[key]) for key in ("weight", "bias"))
            assert weight is not None
            owner = weight.removesuffix(".weight")
            counts[owner] = counts.get(owner, 0) + 1
            name = owner if counts[owner] == 1 else f"{owner}#{counts[owner]}"
            path = f"_layer_{len(self._nodes)}"
            self.model.add_submodule(path, layer)
            with graph.inserting_before(node):
                call = graph.call_module(path, (node.args[0],))
            call.meta = dict(node.meta)
            node.replace_all_uses_with(call)
            graph.erase_node(node)
            self._nodes[name] = call
            if norm is not None:
                self.norms[name] = norm
            others = tuple(each for each in self._owners.get(weight, ()) if each != owner)
            yield Site(name, path, "linear" if isinstance(layer, nn.Linear) else "conv", weight, bias, others)

    def _layer(self, node: fx.Node) -> tuple[Quantizable, FoldedNorm | None] | None:
        """Return the layer that a node computes; a batch norm that alone reads it is folded and removed."""
        is_conv = node.target in _CONVS
        if not is_conv and node.target is not aten.linear.default:
            return None
        given = _arguments(node)
        stored = [self._stored(given[key]) for key in ("weight", "bias")]
        weight, bias = stored
        if weight is None or (bias is None and given["bias"] is not None):
            return None
        norm = next(iter(node.users)) if len(node.users) == 1 else None
        removed = None
        by_channel = _rank(node) == (4 if is_conv else 2)  # a norm of (N, tokens, channels) is about tokens
        if by_channel and norm is not None and norm.target is _NORM and norm.args[0] is node:
            folded = self._folded(weight, bias, norm)
            if folded is not None:
                weight, bias, removed = folded
                (taken,) = norm.users
                taken.replace_all_uses_with(node)
                self.model.graph.erase_node(taken)
                self.model.graph.erase_node(norm)
        if not is_conv:
            return linear(weight, bias), removed
        places = [given[key] for key in ("stride", "padding", "dilation", "groups")]
        return conv(weight, bias, places), removed

    def _folded(
        self, weight: Tensor, bias: Tensor | None, norm: fx.Node
    ) -> tuple[Tensor, Tensor, FoldedNorm] | None:
        gain, offset, mean, variance = (self._stored(each) for each in norm.args[1:5])
        if mean is None or variance is None or [user.args[1:] for user in norm.users] != [(0,)]:
            return None
        scale = torch.rsqrt(variance.double() + float(norm.args[6]))  # type: ignore[arg-type]
        scale = scale if gain is None else scale * gain.double()
        shift = -mean.double() if bias is None else bias.double() - mean.double()
        shift = shift * scale if offset is None else shift * scale + offset.double()
        wide = scale.reshape(-1, *[1] * (weight.ndim - 1))
        own = FoldedNorm(
            str(_name_of(norm.args[3])).removesuffix(".running_mean"),
            torch.ones_like(variance) if gain is None else gain,
            torch.zeros_like(mean) if offset is None else offset,
        )
        return (weight.double() * wide).float(), shift.float(), own

    def _stored(self, argument: object) -> Tensor | None:
        """Return the tensor that an argument names, a copy; None if it is computed, or there is none."""
        if not isinstance(argument, fx.Node) or argument.op != "get_attr":
            return None
        owner, _, name = str(argument.target).rpartition(".")
        found = getattr(self.model.get_submodule(owner), name)
        return found.detach().clone() if isinstance(found, Tensor) and found.is_floating_point() else None

    def input_of(self, site: Site) -> str | None:
        """Return the name of the activation that a layer reads.

        It is None where no grid is possible: a tensor of the network itself, or one that is not float32.
        """
        given = self._nodes[site.name].args[0]
        return self._names[_origin(given)] if isinstance(given, fx.Node) and _is_float(given) else None

    def activations(self, quantized: Collection[str]) -> dict[str, list[fx.Node]]:
        """Return the activations that need a grid if the named layers are quantized, in forward order.

        These are the inputs of the layers, the outputs of convolutions, and both sides of joins.

        Returns:
            Name -> nodes on one grid: the one that computes the activation, and those that pass it on.
        """
        wanted: set[fx.Node] = set()
        todo = [node for name, node in self._nodes.items() if name in quantized]
        for node in todo:
            wanted.add(node.args[0])  # type: ignore[arg-type]
        for node in self.model.graph.nodes:
            on_maps = _is_map(node)
            if node in todo and on_maps:
                wanted.add(_clipped(node))
            if quantized and node.target in _JOINS and on_maps:
                parts = [each for each in node.all_input_nodes if each.op != "get_attr"]
                if len(parts) == len(node.all_input_nodes) > 1:
                    wanted |= {*parts, _clipped(node)}
        wanted = {node for node in wanted if _is_float(node) and not _is_result(node)}
        order: dict[str, list[fx.Node]] = {}
        for node in self.model.graph.nodes:
            if _is_float(node) and any(each in wanted for each in _passed_on(node)):
                order.setdefault(self._names[_origin(node)], []).append(node)
        return order

    def sums(self, quantized: Collection[str]) -> dict[str, tuple[str, str]]:
        """Return activation -> its two addends, for sums of activations that have grids."""
        named = {node: name for name, nodes in self.activations(quantized).items() for node in nodes}
        found = {}
        for node in self.model.graph.nodes:
            if node.target is aten.add.Tensor and not node.kwargs and _clipped(node) in named:
                left, right = (named.get(each) for each in node.args)
                if left is not None and right is not None:
                    found[named[_clipped(node)]] = (left, right)
        return found

    def shared(self, quantized: Collection[str]) -> dict[str, str]:
        """Return activation -> the first of those on the same grid, itself if there are no others.

        XNNPACK joins maps only if they and the result have one grid, and others are fast then.
        """
        points = self.activations(quantized)
        named = {node: name for name, nodes in points.items() for node in nodes}
        first = {name: name for name in points}
        for node in self.model.graph.nodes:
            if node.target is aten.cat.default and _clipped(node) in named:
                maps = (*node.all_input_nodes, _clipped(node))
                joined = {first[named[each]] for each in maps if each in named}
                leader = next(name for name in points if name in joined)
                first = {name: leader if own in joined else own for name, own in first.items()}
        return first

    @torch.inference_mode()
    def see(self, images: Tensor, quantized: Collection[str], visit: Visit) -> None:
        """Run the float network on a batch of images, and show each activation."""
        firsts = {nodes[0]: name for name, nodes in self.activations(quantized).items()}
        _Visitor(self.model, firsts, visit).run(images.clone())

    def assembled(
        self,
        layers: Mapping[str, nn.Module],
        grids: Mapping[str, nn.Module],
        quantized: Collection[str],
        sums: Mapping[str, nn.Module] | None = None,
    ) -> nn.Module:
        """Return the network with other layers and with its activations on grids.

        Args:
            layers: site -> its new layer.
            grids: activation -> what puts it on its grid; those of ``activations``, or none.
            quantized: names of the layers that are quantized.
            sums: activation -> what adds its two addends; see ``sums``.
        """
        sums = sums or {}
        points = self.activations(quantized) if grids else {}
        graph = fx.Graph()
        graph.set_codegen(self.model.graph._codegen)  # it holds the structure of the output
        copies: dict[fx.Node, fx.Node] = {}
        named = {node: name for name, nodes in points.items() for node in nodes}
        paths = {name: f"_grid_{index}" for index, name in enumerate(grids)}
        adding = {name: f"_sum_{index}" for index, name in enumerate(sums)}
        for node in self.model.graph.nodes:
            if node.target is aten.add.Tensor and (name := self._names[node]) in sums:
                made = graph.call_module(adding[name], tuple(copies[each] for each in node.args))
            else:
                made = graph.node_copy(node, lambda each: copies[each])
            copies[node] = made
            if node in named:
                copies[node] = graph.call_module(paths[named[node]], (made,))
        root = copied(self.model)
        for site in self.sites:
            if site.name in layers:
                root.add_submodule(site.path, layers[site.name])
        for names, modules in ((paths, grids), (adding, sums)):
            for name, module in modules.items():
                root.add_submodule(names[name], module)
        return fx.GraphModule(root, graph, type(self.model).__name__).eval()


class _Visitor(fx.Interpreter):
    def __init__(self, model: fx.GraphModule, names: Mapping[fx.Node, str], visit: Visit) -> None:
        super().__init__(model)
        self._wanted, self._visit = names, visit

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        if n in self._wanted:
            self._visit(self._wanted[n], found)
        return found


def exported(model: nn.Module, example: Tensor) -> tuple[fx.GraphModule | None, str]:
    """Export a network with a free batch size, and prove that the program computes what the network does.

    Args:
        model: in eval mode, on the CPU; it is left as it is.
        example: (2 or more, C, H, W).

    Returns:
        The program, or None and the reason.
    """
    network = copied(model)
    free = ({0: torch.export.Dim("batch")},)
    try:
        with quiet(), torch.inference_mode(False):
            program = torch.export.export(network, (example.clone(),), dynamic_shapes=free)
            found = program.run_decompositions({}).module()
        assert isinstance(found, fx.GraphModule)
        for node in list(found.graph.nodes):
            if node.op == "call_module" and node.target == "_guards_fn":
                found.graph.erase_node(node)
        found = fx.GraphModule(found, found.graph, type(model).__name__)  # an exported one has no modes
        with torch.no_grad():
            odd = torch.cat([example, example.flip(-1)])[:3]  # another batch size
            same = _same(found(odd.clone()), network(odd.clone()))
    except Exception as error:  # the export has no common base class of errors
        return None, _why_not(error)
    return (found, "") if same else (None, "the exported program computes something else")


def _why_not(error: Exception) -> str:
    line = first_line(error) or type(error).__name__
    return FIXED_BATCH if line.startswith("Constraints violated (batch)") else line


def _same(found: Any, expected: Any) -> bool:
    left, right = (torch.utils._pytree.tree_leaves(each) for each in (found, expected))
    return len(left) == len(right) and all(
        not isinstance(a, Tensor) or torch.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True)
        for a, b in zip(left, right, strict=True)
    )


def _owners(network: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return parameter -> the layers that hold it, or parameters without ``.weight``, itself included."""
    names: dict[int, list[str]] = {}
    for name, tensor in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(tensor), []).append(name)
    return {
        name: tuple(each.removesuffix(".weight") for each in found)
        for found in names.values()
        for name in found
    }


def _name_of(argument: object) -> str | None:
    """Return the name of a tensor of the network; None if the argument is none."""
    return str(argument.target) if isinstance(argument, fx.Node) and argument.op == "get_attr" else None


def _arguments(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a layer's node by name, defaults included."""
    target = node.target
    found: dict[str, Any] = {}
    for index, argument in enumerate(target._schema.arguments):  # type: ignore[union-attr]
        default = argument.default_value if argument.has_default_value() else None
        given = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name, default)
        found[argument.name] = given
    return found


def _names(graph: fx.Graph, layers: Mapping[str, fx.Node]) -> dict[fx.Node, str]:
    """Name every node: ``input``, the layer, or module and operator, numbered where that name is taken."""
    of_layers = {_clipped(node): name for name, node in layers.items()}
    of_layers |= {node: name for name, node in layers.items()}
    names: dict[fx.Node, str] = {}
    taken = set(layers)
    for node in graph.nodes:
        if node in of_layers:
            names[node] = of_layers[node]
            continue
        if node.target in CLIPS and (before := node.args[0]) in names and _clipped(before) is node:
            names[node] = names[before]
            continue
        word = str(node.target).removeprefix("aten.").split(".")[0]
        word = {"placeholder": "input", "call_function": word}.get(node.op, node.op)
        stack = list(node.meta.get("nn_module_stack", {}).values())
        place = f"{stack[-1][0]}:{word}" if stack and stack[-1][0] else word
        numbered = (f"{place}#{number}" for number in itertools.count(2))
        names[node] = next(name for name in itertools.chain([place], numbered) if name not in taken)
        taken.add(names[node])
    return names


def _clipped(node: fx.Node) -> fx.Node:
    """Return the activation that alone reads a node and that a grid computes for free, else the node."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target in CLIPS else node


def _origin(node: Any) -> fx.Node:
    """Return the node that computes the values which ``node`` passes on."""
    while _passes(node):
        node = node.args[0]
    assert isinstance(node, fx.Node)
    return node


def _passes(node: fx.Node) -> bool:
    """Whether what a node computes is some of its first input, or zeros around it, which every grid has."""
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and node.args[0].target in _SPLITS
    if node.target is aten.constant_pad_nd.default:
        return len(node.args) < 3 or bool(node.args[2] == 0)
    return node.target in _PASSES or node.target in _SPLITS


def _passed_on(node: fx.Node) -> Iterator[fx.Node]:
    """Yield a node and, with their paths, all that pass its values on."""
    todo = [node]
    while todo:
        each = todo.pop()
        yield each
        todo += [user for user in each.users if _passes(user) and user.args[0] is each]


def _is_map(node: fx.Node) -> bool:
    return _rank(node) == 4


def _rank(node: fx.Node) -> int | None:
    """Return the number of dimensions of what a node computes; None if that is no tensor."""
    value = node.meta.get("val")
    return value.ndim if isinstance(value, Tensor) else None


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return node.op != "get_attr" and isinstance(value, Tensor) and value.dtype == torch.float32


def _is_result(node: fx.Node) -> bool:
    """Whether a node is an output of the network, or some of one."""
    return bool(node.users) and all(
        user.op == "output" or ((_passes(user) or user.target is aten.cat.default) and _is_result(user))
        for user in node.users
    )


def _not_quantizable(
    network: nn.Module, known: Collection[str], tied: Collection[str]
) -> Iterator[FloatLayer]:
    """Yield the layers of a network that no site computes, with the reason.

    Args:
        network: the network.
        known: the layers that sites compute.
        tied: layers whose weight a site has, too.
    """
    for name, module in network.named_modules():
        if name in known or not getattr(module, "weight", None).__class__.__name__.endswith("Parameter"):
            continue
        kind = type(module).__name__
        if isinstance(module, nn.Conv2d | nn.Linear):
            if name not in tied:
                yield FloatLayer(
                    name, "its weight is not stored as it is used, or it runs in a nested program"
                )
        elif isinstance(module, nn.modules.conv._ConvNd | nn.RNNBase | nn.Embedding | nn.Bilinear):
            yield FloatLayer(name, f"({kind}) only Conv2d and Linear are quantized")
