"""From a network and the description of its quantization to the network that computes as a runtime does."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from amc.digest import state_digest
from amc.errors import FileError
from amc.quantization.description import Quantization, QuantizedLayer
from amc.quantization.layers import TYPES, DynamicLayer, HalfPrecision, IntegerLayer, IntegerSum, RoundTrip
from amc.quantization.modules import ModuleProgram
from amc.quantization.program import GraphProgram, Site, exported

Program = GraphProgram | ModuleProgram


def program_of(
    model: nn.Module, input_shape: tuple[int, int, int], placement: str = ""
) -> tuple[Program, str]:
    """Return a network as a program, and why it is not a graph, or an empty string.

    Args:
        model: the float network, in eval mode on the CPU; it is left as it is.
        input_shape: one image, (C, H, W).
        placement: ``modules`` for no attempt to export.
    """
    reason = ""
    if placement != "modules":
        graph, reason = exported(model, example_of(input_shape))
        if graph is not None:
            return GraphProgram(graph, model), ""
    return ModuleProgram(model), reason


def example_of(input_shape: tuple[int, int, int]) -> Tensor:
    """Return two random images, (2, C, H, W), the same for each shape (C, H, W) of one."""
    return torch.randn((2, *input_shape), generator=torch.Generator().manual_seed(0))


def simulated(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    quantization: Quantization,
    tensors: Mapping[str, Tensor],
) -> nn.Module:
    """Return the network that a description and its tensors make of a float network, in eval mode.

    Raises:
        FileError: the description belongs to another network.
    """
    if (own := state_digest(model.state_dict())) != quantization.network:
        raise FileError(
            f"the quantization is of another network or other weights (digest {quantization.network[:8]}, "
            f"this network has {own[:8]}): run stage quantize again"
        )
    if quantization.method in TYPES:
        return HalfPrecision(model, quantization.method).eval()
    program, _ = program_of(model, input_shape, quantization.placement)
    names = {site.name for site in program.sites}
    if program.placement != quantization.placement or not names >= {e.name for e in quantization.layers}:
        raise FileError(
            f"the quantization has layers that {type(model).__name__} does not have; likely cause: it was "
            "made with another version of torch: run stage quantize again"
        )
    return assemble(program, quantization, tensors)


def assemble(program: Program, quantization: Quantization, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return the network that a description makes of a program.

    Raises:
        FileError: an activation has no grid, or a tensor is missing.
    """
    layers, grids = parts_of(program, quantization, tensors)
    addends = program.sums(set(layers)) if grids else {}
    sums = {
        name: IntegerSum(grids[left], grids[right], grids[name]) for name, (left, right) in addends.items()
    }
    return program.assembled(layers, grids, set(layers), sums)


def parts_of(
    program: Program, quantization: Quantization, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, nn.Module], dict[str, RoundTrip]]:
    """Return the quantized layers and the grids of activations by name.

    Raises:
        FileError: as in ``assemble``.
    """
    sites = {site.name: site for site in program.sites}
    grids = {each.name: RoundTrip(each.scale, each.zero_point) for each in quantization.activations}
    scales = {each.name: each.scale for each in quantization.activations}
    try:
        layers = {
            layer.name: _layer(program, sites[layer.name], layer, quantization.method, tensors, scales)
            for layer in quantization.layers
        }
    except KeyError as error:
        raise FileError(f"the quantization lacks {error}: run stage quantize again") from error
    quantized: Collection[str] = set(layers)
    if grids and (wanted := set(program.activations(quantized))) != set(grids):
        odd = sorted(wanted ^ set(grids))[0]
        raise FileError(f"the quantization does not fit the network at {odd!r}: run stage quantize again")
    return layers, grids


def _layer(
    program: Program,
    site: Site,
    layer: QuantizedLayer,
    method: str,
    tensors: Mapping[str, Tensor],
    scales: Mapping[str, float],
) -> nn.Module:
    module = program.model.get_submodule(site.path)
    assert isinstance(module, nn.Conv2d | nn.Linear)
    integers, scale = tensors[f"{layer.name}.weight"], tensors[f"{layer.name}.scale"]
    bias = tensors.get(f"{layer.name}.bias")
    if method == "dynamic_int8":
        return DynamicLayer(module, integers, scale, bias)
    if layer.input is None:
        return IntegerLayer(module, integers, scale, bias, block=layer.block)
    # The activation that a layer computes has its name.
    step, out = scales[layer.input], scales.get(layer.name)
    return IntegerLayer(module, integers, scale, bias, step=step, out=out)
