"""Quantization of a network: which layers, on which grids, rounded how."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from amc.digest import state_digest
from amc.errors import AmcError, SettingError, first_line
from amc.quantization.choice import BATCH, chosen
from amc.quantization.description import Activation, FloatLayer, Quantization, QuantizedLayer
from amc.quantization.grids import Range, scale_for_bias, weight_grid
from amc.quantization.layers import TYPES, HalfPrecision
from amc.quantization.program import Site
from amc.quantization.rounding import Inputs, by_moments, input_moments, mean_error
from amc.quantization.sensitivity import Sensitivity, sensitivities
from amc.quantization.settings import INTEGER, LEAST_IMAGES, QuantizeSettings
from amc.quantization.simulation import Program, assemble, program_of


class NothingToQuantizeError(AmcError):
    """A network in which no layer can be quantized."""


@dataclass(frozen=True)
class Quantized:
    """A quantized network.

    Attributes:
        description: what it is.
        tensors: its integers and scales by name.
        model: the network that computes as a runtime does, in eval mode.
        sensitivity: what each layer alone costs; empty where it was not measured.
        notes: what is remarkable, a line each.
        program: the float network that the description is about; None if no layer has integers.
    """

    description: Quantization
    tensors: dict[str, Tensor]
    model: nn.Module
    sensitivity: tuple[Sensitivity, ...]
    notes: tuple[str, ...]
    program: Program | None = None


def quantize(
    model: nn.Module,
    images: Tensor,
    settings: QuantizeSettings,
    *,
    progress: Callable[[str], Any] = lambda step: None,
) -> Quantized:
    """Quantize a trained network.

    Args:
        model: the float network, in eval mode on the CPU; it is left as it is.
        images: calibration images (N, C, H, W), normalised.
        settings: what to do; its method is not ``none``.
        progress: called with what is done next.

    Raises:
        SettingError: there are too few images, or an excluded layer does not exist.
        NothingToQuantizeError: no layer can be quantized.
        AmcError: an activation is not finite, or the network does not run, or overflows, in 16-bit floats.
    """
    if len(images) < LEAST_IMAGES:
        raise SettingError(
            f"got {len(images)} calibration image, expected at least {LEAST_IMAGES} (hundreds are usual): "
            "ranges of one image hold for no other; raise data.calibration"
        )
    network = state_digest(model.state_dict())
    made = Quantization(settings.form, "graph", network, settings=asdict(settings))
    if settings.form not in INTEGER:
        return Quantized(made, {}, _halved(model, images, settings.method), (), ())
    progress("export")
    shape = (images.shape[1], images.shape[2], images.shape[3])
    program, reason = program_of(model, shape)
    notes = (
        [f"only inputs and weights of layers are quantized, as it cannot be exported: {reason}"]
        if reason
        else []
    )
    found: tuple[Sensitivity, ...] = ()
    split = chosen(program, settings, images)
    sites, left = split.sites, split.left_float
    costly: list[FloatLayer] = []
    if settings.sensitivity_images and sites:
        progress("sensitivity")
        some = images[: settings.sensitivity_images]
        found = sensitivities(program, sites, some, settings)
        sites, costly = _tolerated(sites, found, settings)
        left += costly
    if not sites:
        raise NothingToQuantizeError(_why_none(found if costly else (), settings))
    quantized = {site.name for site in sites}
    activations: tuple[Activation, ...] = ()
    if settings.form == "static_int8":
        progress("ranges")
        activations, remarks = _ranges(program, quantized, images, settings)
        notes += remarks
    progress("rounding")
    bits = [split.bits[site.name] for site in sites]
    layers, tensors, remarks = _rounded(program, sites, bits, images, settings, activations)
    made = replace(
        made,
        placement=program.placement,
        layers=layers,
        activations=activations,
        left_float=tuple(left),
    )
    model = assemble(program, made, tensors)
    return Quantized(made, tensors, model, found, (*notes, *remarks), program)


def _halved(model: nn.Module, images: Tensor, method: str) -> HalfPrecision:
    """Return a network that computes in 16-bit floats, tried on the calibration images.

    Raises:
        AmcError: it does not run, or gives NaN or infinity where the float32 network does not.
    """
    network = HalfPrecision(model, method).eval()
    try:
        with torch.no_grad():
            overflows = any(_overflows(network, model, batch) for batch in images.split(BATCH))
    except Exception as error:  # a network may raise anything
        raise AmcError(
            f"{type(model).__name__} does not run in {method}: {first_line(error)}; likely cause: it holds a "
            "float32 tensor that is no buffer, and stays float32 (self.register_buffer makes it one), or an "
            f"operator that a CPU does not have in {method}"
        ) from error
    if overflows:
        raise not_finite(type(model).__name__, method)
    return network


def _overflows(network: nn.Module, model: nn.Module, images: Tensor) -> bool:
    """Return whether an output is not finite, though that of the float32 ``model`` is."""
    found = _floats(network(images.clone()))
    if all(bool(each.isfinite().all()) for each in found):
        return False
    exact = _floats(model(images.clone()))
    return any(
        bool((a.isfinite() > b.isfinite()).any()) if a.shape == b.shape else not bool(b.isfinite().all())
        for a, b in zip(exact, found, strict=False)  # the number of boxes of a detector may differ
    )


def _floats(found: Any) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(found)
    return [each for each in leaves if isinstance(each, Tensor) and each.is_floating_point()]


def not_finite(name: str, method: str) -> AmcError:
    """Return the error of a network that gives NaN or infinity in 16-bit floats alone.

    Args:
        name: the network's class.
        method: ``fp16`` or ``bf16``.
    """
    likely = "a number that is rounded to 0, and divided by"
    if method == "fp16":
        largest = torch.finfo(TYPES[method]).max
        likely = f"values exceed {largest:.0f}, the largest of fp16: quantize.method=bf16 holds them"
    return AmcError(
        f"{name} gives NaN or infinity in {method}, expected finite outputs as in float32; likely cause: "
        f"{likely}"
    )


def _why_none(costly: tuple[Sensitivity, ...], settings: QuantizeSettings) -> str:
    """Return why no layer is left to quantize; ``costly`` are those that only the tolerance leaves float."""
    if not costly:
        return "no layer can be quantized; likely cause: all are excluded, or none is Conv2d or Linear"
    least = min(each.errors[settings.weight_bits] for each in costly)
    return (
        f"no layer can be quantized: quantize.tolerance={settings.tolerance:g}, but each layer alone changes "
        f"the outputs by {least:.3g} or more; raise it, or write quantize.tolerance=null"
    )


def _tolerated(
    sites: list[Site], found: tuple[Sensitivity, ...], settings: QuantizeSettings
) -> tuple[list[Site], list[FloatLayer]]:
    if (most := settings.tolerance) is None:
        return sites, []
    errors = {each.layer: each.errors[settings.weight_bits] for each in found}
    left = [
        FloatLayer(site.name, f"alone it changes the outputs by {errors[site.name]:.3g} (quantize.tolerance)")
        for site in sites
        if errors[site.name] > most
    ]
    return [site for site in sites if errors[site.name] <= most], left


def _ranges(
    program: Program, quantized: Collection[str], images: Tensor, settings: QuantizeSettings
) -> tuple[tuple[Activation, ...], list[str]]:
    """Measure the range of every activation in two passes, limits and histograms; joined ones share it."""
    first = program.shared(quantized)
    ranges = {name: Range(name) for name in dict.fromkeys(first.values())}
    for batch in images.split(BATCH):
        program.see(batch, quantized, lambda name, values: ranges[first[name]].see_limits(values))
    constant = [name for name, each in ranges.items() if each.spread == 0]
    if len(constant) == len(ranges) or program.images in constant:
        raise AmcError("the calibration images are constant; likely cause: blank images, or a wrong data set")
    if settings.ranges != "minmax":
        for batch in images.split(BATCH):
            program.see(batch, quantized, lambda name, values: ranges[first[name]].see_histogram(values))
    grids = {name: each.grid(settings) for name, each in ranges.items()}
    notes = [f"activation {name!r} is constant on the calibration images" for name in constant]
    return tuple(Activation(name, *grids[leader]) for name, leader in first.items()), notes


def _rounded(
    program: Program,
    sites: list[Site],
    bits_of: list[int],
    images: Tensor,
    settings: QuantizeSettings,
    activations: tuple[Activation, ...],
) -> tuple[tuple[QuantizedLayer, ...], dict[str, Tensor], list[str]]:
    """Round the weights of all layers, each to its bits, and correct their biases."""
    moments: dict[str, Inputs] = {}
    if settings.rounding == "moments" or settings.bias_correction:
        moments = input_moments(program.model, [site.path for site in sites], images)
    steps = {each.name: each.scale for each in activations}
    layers: list[QuantizedLayer] = []
    tensors: dict[str, Tensor] = {}
    notes: list[str] = []
    for site, bits in zip(sites, bits_of, strict=True):
        name = program.input_of(site) if activations else None
        step = None if name is None else steps[name]
        own, remarks, rounding = _tensors(program, site, settings, bits, moments.get(site.path), step)
        tensors |= {f"{site.name}.{key}": tensor for key, tensor in own.items()}
        notes += remarks
        block = settings.group if own["scale"].ndim > 1 else 0
        layers.append(QuantizedLayer(site.name, site.kind, bits, block, rounding, name))
    return tuple(layers), tensors, notes


def _tensors(
    program: Program,
    site: Site,
    settings: QuantizeSettings,
    bits: int,
    inputs: Inputs | None,
    step: float | None,
) -> tuple[dict[str, Tensor], list[str], str]:
    """Return the tensors of one layer, what is remarkable, and how it was rounded."""
    module = program.model.get_submodule(site.path)
    assert isinstance(module, nn.Conv2d | nn.Linear)
    weight = module.weight.detach().flatten(1)
    bias = None if module.bias is None else module.bias.detach().clone()
    notes = []
    if empty := int((weight == 0).all(1).sum()):
        notes.append(f"layer {site.name!r} has {empty} channels whose weights are all zero")
    gram = inputs.gram if inputs is not None and settings.rounding == "moments" else None
    if gram is None and settings.rounding == "moments":
        notes.append(
            f"layer {site.name!r} has {weight.shape[1]} inputs: too many second moments, rounded to nearest"
        )
    if settings.group and weight.shape[1] % settings.group:
        notes.append(
            f"layer {site.name!r} has {weight.shape[1]} inputs, which quantize.group={settings.group} does "
            "not divide: one scale a channel"
        )
    grid = weight_grid(weight, bits, settings.group, least_error=settings.ranges == "mse")
    if step is not None and bias is not None:
        grid = replace(grid, scale=scale_for_bias(grid.scale[:, 0], bias, step)[:, None])
    rounding, integers = "nearest", grid.nearest(weight)
    if gram is not None and not grid.signs:
        rounding, integers = "moments", by_moments(weight, grid, gram)
    if inputs is not None and settings.bias_correction:
        shift = mean_error(weight, grid.values(integers), inputs)
        bias = shift if bias is None else bias + shift
    scale = grid.scale
    if grid.block == weight.shape[1]:
        integers, scale = integers.reshape(module.weight.shape), scale[:, 0]
    return stored(integers, scale, bias, step), notes, rounding


def stored(integers: Tensor, scale: Tensor, bias: Tensor | None, step: float | None) -> dict[str, Tensor]:
    """Return the tensors of a layer as a file holds them.

    Args:
        integers: int8, of the shape of the weights, or (channels, inputs) with blocks.
        scale: (channels,), or (channels, blocks).
        bias: (channels,) float32, if there is one.
        step: scale of the activation that the layer reads, which makes integers of the bias.
    """
    found = {"weight": integers, "scale": scale}
    if bias is not None:
        steps = (
            (bias.double() / (scale * step).double()).round().to(torch.int32) if step is not None else bias
        )
        found["bias"] = steps
    return found
