"""Layers as a forward pass calls them: the dense network's outputs, and the pruned network's inputs.

Hooks see every call of a layer, whatever the forward pass does between them. So a layer that runs several
times is solved for all its calls at once, and a network that cannot be traced is refitted all the same.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amc.graph.columns import columns, taps_of
from amc.graph.layers import MapNorm
from amc.graph.tied import tied_layers
from amc.graph.unfolding import (
    has_batch_axis,
    layer_input,
    layer_rows,
    sample_positions,
    single,
    why_not_linear,
)
from amc.refit.images import RefitImages
from amc.refit.layer import NormAfter, Samples, reestimate, refit_layer, select

_Taker = Callable[[int, int, Tensor], None]
"""(block, number of the call, input) -> nothing."""


class _Reached(BaseException):
    """Ends a forward pass; no handler of errors in it is meant to stop that."""


@dataclass(frozen=True)
class _Call:
    """What the dense layer delivered at one call on one block of images.

    Attributes:
        outer: shape of its input without the channels.
        chosen: (P,) sampled output positions.
        rows: (N * P, out) outputs there; N is the length of the input's first axis.
    """

    outer: tuple[int, ...]
    chosen: Tensor
    rows: Tensor


@torch.no_grad()
def input_shapes(model: nn.Module, images: Tensor) -> dict[str, list[torch.Size]]:
    """Run a network on images (N, C, H, W).

    Returns:
        Name of a layer or batch norm -> shapes of its inputs, call by call, in the order of the first calls.
    """
    shapes: dict[str, list[torch.Size]] = {}

    def record(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], options: dict[str, Tensor]) -> None:
            shapes.setdefault(name, []).append(layer_input(args, options).shape)

        return hook

    kinds = nn.Conv2d | nn.Linear | MapNorm
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]
    hooks = [module.register_forward_pre_hook(record(name), with_kwargs=True) for name, module in found]
    try:
        model(images.clone())
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


class Calls:
    """What chosen layers of the dense network deliver, call by call.

    Args:
        dense: the dense network, in eval mode.
        images: calibration images.
        names: layers and batch norms; of norms only the calls are counted.
        positions_per_image: output positions sampled from each image and layer, shared by its calls.
        seed: of the choice of positions.

    Attributes:
        layers: those of the layers that are plain products with a weight of their own.
    """

    def __init__(
        self,
        dense: nn.Module,
        images: RefitImages,
        names: Collection[str],
        *,
        positions_per_image: int,
        seed: int = 0,
    ) -> None:
        self._blocks, self._fit = images.parted
        shapes = {n: own for n, own in input_shapes(dense, self._blocks[0]).items() if n in names}
        tied = tied_layers(dense)
        self.layers = tuple(n for n in shapes if n not in tied and _plain(dense.get_submodule(n), shapes[n]))
        self._positions = positions_per_image
        self._usual = {name: len(own) for name, own in shapes.items()}
        self._counts: list[Counter[str]] = []
        self._calls: dict[str, dict[tuple[int, int], _Call]] = {name: {} for name in self.layers}
        self._record(dense, torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def _record(self, dense: nn.Module, generator: torch.Generator) -> None:
        hooks = [
            dense.get_submodule(name).register_forward_hook(self._recorder(name, generator), with_kwargs=True)
            for name in self._usual
        ]
        try:
            for block in self._blocks:
                self._counts.append(Counter())
                dense(block.clone())  # the network may work in place
        finally:
            for hook in hooks:
                hook.remove()

    def _recorder(self, name: str, generator: torch.Generator) -> Any:
        def hook(
            module: nn.Module, args: tuple[Tensor, ...], options: dict[str, Tensor], output: Tensor
        ) -> None:
            place = len(self._counts) - 1
            number = self._counts[place][name]
            self._counts[place][name] += 1
            inputs = layer_input(args, options)
            # A forward pass may choose none of the images for a layer.
            if name not in self._calls or not inputs.numel():
                return
            # A first axis may hold more than images, windows of them for example.
            rows = max(1, self._positions * len(self._blocks[place]) // self._usual[name])
            chosen = sample_positions(module, inputs, max(1, rows // len(inputs)), generator)
            call = _Call(_outer(module, inputs), chosen, single(layer_rows(module, output, chosen)))
            self._calls[name][place, number] = call

        return hook

    @torch.no_grad()
    def refit(
        self, pruned: nn.Module, name: str, norm: NormAfter | None, outputs: Tensor | None, *, ridge: float
    ) -> bool:
        """Give a layer of the pruned network new weights, solved for all its calls at once.

        The inputs are those of the present weights.

        Args:
            norm: the batch norm that alone reads the layer's output.
            outputs: kept channels of the layer, (n,) int64; None for all.
            ridge: see ``amc.refit.least_squares.solve_rows``.

        Returns:
            Whether the pruned network calls the layer as the dense one does; if not, it stays as it is.
        """
        module = pruned.get_submodule(name)
        assert isinstance(module, nn.Conv2d | nn.Linear)
        pairs: dict[bool, list[tuple[Tensor, Tensor]]] = {True: [], False: []}

        def take(place: int, number: int, inputs: Tensor) -> None:
            call = self._calls[name].get((place, number))
            if call is not None and call.outer == _outer(module, inputs):
                own = columns(module, inputs, taps_of(module, inputs, call.chosen))
                pairs[place < self._fit].append((own, select(call.rows, outputs)))

        self._run(pruned, name, take)
        if not pairs[True]:
            return False
        blocks, parts = zip(*pairs[True], *pairs[False], strict=True)
        rows = torch.cat(parts)
        fit = sum(len(own) for _, own in pairs[True])
        like = module.weight
        plain = like.new_ones(len(like)), like.new_zeros(len(like))
        scale, offset = plain if norm is None else norm.affine()
        samples = Samples(blocks, rows, scale, offset.expand_as(rows), fit)
        refit_layer(module, samples, norm, ridge=ridge, rounds=0)
        return True

    @torch.no_grad()
    def reestimate(self, pruned: nn.Module, name: str) -> None:
        """Give a batch norm of the pruned network the statistics of all its calls."""
        norm = pruned.get_submodule(name)
        assert isinstance(norm, MapNorm)
        found: dict[int, list[Tensor]] = defaultdict(list)

        def take(_place: int, number: int, inputs: Tensor) -> None:
            if inputs.numel():
                found[number].append(inputs.clone())

        self._run(pruned, name, take)
        if found:
            reestimate(norm, list(found.values()))

    def _run(self, model: nn.Module, name: str, take: _Taker) -> None:
        """Run a network on every block, up to the last call of a module; ``take`` gets all its inputs."""
        for place, block in enumerate(self._blocks):
            if last := self._counts[place][name]:
                _run_to(model, name, block.clone(), last, place, take)


def _run_to(model: nn.Module, name: str, block: Tensor, last: int, place: int, take: _Taker) -> None:
    number = 0

    def hook(module: nn.Module, args: tuple[Tensor, ...], options: dict[str, Tensor]) -> None:
        nonlocal number
        take(place, number, layer_input(args, options))
        number += 1
        if number == last:
            raise _Reached

    handle = model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        model(block)
    except _Reached:
        pass
    finally:
        handle.remove()


def _plain(module: nn.Module, shapes: Sequence[torch.Size]) -> bool:
    """Whether a module is a layer whose inputs hold images on the first axis and that is a plain product."""
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return False
    batched = all(has_batch_axis(module, shape) for shape in shapes)
    return batched and why_not_linear(module, torch.Size((1, *shapes[0][1:]))) is None


def _outer(module: nn.Module, inputs: Tensor) -> tuple[int, ...]:
    """Shape of a layer's input without its channels."""
    shape = tuple(inputs.shape)
    return (shape[0], *shape[2:]) if isinstance(module, nn.Conv2d) else shape[:-1]
