"""The convolution and linear layers of a network, as they ran on one example image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from amc.errors import NotPrunableError, about_sizes, brief, out_of_memory
from amc.graph.unfolding import has_batch_axis, why_not_linear
from amc.scoring.flatten import as_matrix, is_logits, output_tensors
from amc.scoring.run import evaluating

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
"""Modules that are layers: they mix channels, and cost multiply-adds."""

MapNorm = nn.BatchNorm2d | nn.SyncBatchNorm
"""Batch norms of maps. A ``SyncBatchNorm`` may also get a matrix: it stands for norms of any dimensions."""


@dataclass(frozen=True)
class _Call:
    """A call of a layer.

    Attributes:
        into, out: shapes of the tensors of floats that it reads and returns; at least one each.
    """

    into: tuple[torch.Size, ...]
    out: tuple[torch.Size, ...]


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer as it ran on one example image.

    Attributes:
        kind: a transposed convolution is cut and looked up like the others, but not refitted in sequence.
        kernel_size, stride: (height, width); (1, 1) for a linear layer.
        groups: convolution groups; equal to ``out_channels`` for a depthwise layer.
        in_size, out_size: feature map (height, width); (1, tokens) for a linear layer.
        positions: output positions per image, summed over all calls of the layer; input positions for a
            transposed convolution, which multiplies each input with the whole kernel.
        calls: number of calls in one forward pass.
        flaw: why it is no matrix product, so that its weights cannot be cut and refitted; None if it is one.
            Its wording is part of the fingerprint of evaluations.
    """

    name: str
    kind: Literal["conv", "linear", "transposed"]
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    groups: int
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    positions: int
    bias: bool
    calls: int = 1
    flaw: str | None = None

    @property
    def inputs(self) -> int:
        """Number of values that one output sums over: the columns of the layer as a matrix."""
        return self.in_channels // self.groups * prod(self.kernel_size)

    @property
    def depthwise(self) -> bool:
        """Whether every channel has its own filter."""
        return self.groups > 1 and self.groups == self.in_channels == self.out_channels

    @property
    def macs(self) -> int:
        """Multiply-adds per image at dense widths."""
        taps = prod(self.kernel_size) * self.in_channels // self.groups
        return self.positions * taps * self.out_channels


def noise_image(model: nn.Module, input_shape: Sequence[int]) -> Tensor:
    """Return an image (1, *input_shape) of noise with device and type of the first floating-point weight.

    It is the same each time. It is not black, as a network may look at what an image shows: in a black one
    there is nothing to crop to, and no deviation to divide by.
    """
    like = next((own for own in model.parameters() if own.is_floating_point()), torch.zeros(()))
    noise = torch.randn(1, *input_shape, generator=torch.Generator().manual_seed(0))
    return noise.to(device=like.device, dtype=like.dtype)


def plain_norm(module: nn.Module | None) -> bool:
    """Return whether a module is a batch norm of maps alone, without an activation in the same module."""
    known = (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward)  # which compute the same in eval mode
    return isinstance(module, MapNorm) and type(module).forward in known


def check_modules(model: nn.Module) -> None:
    """Refuse a network with a part whose layers cannot be cut, or with one mode only.

    Raises:
        NotPrunableError: a module is compiled by ``torch.jit``, or evaluation mode fails.
    """
    kind = type(model).__name__
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            part = f"{name} ({type(module).__name__}) of {kind}" if name else kind
            raise NotPrunableError(
                f"{part} is compiled by torch.jit, so its layers cannot be cut; expected the network as it "
                "was before torch.jit.script or torch.jit.trace"
            )
    try:
        with evaluating(model):
            pass
    except Exception as error:  # a user's ``train`` may raise anything
        raise NotPrunableError(
            f"{kind} cannot be put into evaluation mode: {brief(error)}; likely cause: it is a program of "
            "torch.export: give the network as it was before"
        ) from error


def trace_layers(model: nn.Module, example: Tensor) -> tuple[tuple[Layer, ...], bool]:
    """Run ``model`` once on ``example``, one image (1, C, H, W).

    Returns:
        Its layers in the order of their first call, and whether it returns logits (N, classes).

    Raises:
        NotPrunableError: the forward pass fails, or its outputs do not form a matrix
            (``amc.scoring.flatten``).
    """
    calls: dict[str, list[_Call]] = defaultdict(list)
    modules = {n: m for n, m in model.named_modules() if isinstance(m, LAYERS)}

    def record(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
            into, out = _shapes([args, options]), _shapes(output)
            if into and out:
                calls[name].append(_Call(into, out))

        return hook

    hooks = [module.register_forward_hook(record(name), with_kwargs=True) for name, module in modules.items()]
    try:
        with torch.no_grad(), evaluating(model):
            output = model(example.clone())  # the network may write into it
    except Exception as error:  # a user's network may raise anything
        if out_of_memory(error):
            raise
        raise NotPrunableError(
            f"{type(model).__name__} fails on an image of shape {tuple(example.shape[1:])}: {brief(error)}"
            f"{_advice(model, example, error)}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    _check_rows(model, example, output)
    described = (_describe(name, modules[name], own) for name, own in calls.items())
    return tuple(described), is_logits(output)


def _advice(model: nn.Module, example: Tensor, error: Exception) -> str:
    """Return what to do about a forward pass that fails, after a semicolon; '' where that is not known."""
    text = str(error)
    if f"{type(model).forward.__qualname__}() missing " in text:
        return "; it is given images alone: give what else it takes a default"
    if any(told in text for told in ("dtype", "scalar type", "Input type")):
        if any(own.dtype == example.dtype for own in model.parameters()):
            return "; its forward pass casts to a type of its own: build it in float32"
        return f"; the image is of another type than the weights ({example.dtype})"
    if about_sizes(error) or isinstance(error, AssertionError):
        return "; do the image size and the channels of the data fit the model?"
    return ""


def unused_layers(model: nn.Module, example: Tensor, names: Sequence[str]) -> frozenset[str]:
    """Return the layers on which no output depends: NaN in place of their results changes nothing.

    Args:
        example: one image (1, C, H, W).
        names: the layers that are tried, each in a forward pass of its own.
    """
    if not names:
        return frozenset()
    modules = dict(model.named_modules())

    def run() -> Tensor:
        with torch.no_grad(), evaluating(model):
            return as_matrix(model(example.clone()), len(example))

    def unused(name: str) -> bool:
        hook = modules[name].register_forward_hook(lambda _module, _args, output: output * torch.nan)
        try:
            return torch.equal(run(), expected)
        except Exception as error:  # a user's network may look at what its layers give
            if out_of_memory(error):
                raise
            return False
        finally:
            hook.remove()

    expected = run()
    return frozenset(filter(unused, names))


def _shapes(values: object) -> tuple[torch.Size, ...]:
    return tuple(tensor.shape for _, tensor in output_tensors(values))


def _check_rows(model: nn.Module, example: Tensor, output: object) -> None:
    """Refuse an output without one row per image.

    Raises:
        NotPrunableError: it has none; says so if only a single image has none.
    """
    try:
        as_matrix(output, len(example))
    except NotPrunableError:
        two = torch.cat([example, example])
        try:
            with torch.no_grad(), evaluating(model):
                as_matrix(model(two), len(two))
        except Exception:  # two images do not work either: the first message is the right one
            pass
        else:
            raise NotPrunableError(
                f"{type(model).__name__} returns one row per image for two images, but not for one: "
                "squeeze() without an axis drops the axis of a single image; write flatten(1) or squeeze(-1)"
            ) from None
        raise


def _describe(
    name: str,
    module: nn.Conv2d | nn.ConvTranspose2d | nn.Linear,
    calls: Sequence[_Call],
) -> Layer:
    shapes = [(call.into[0], call.out[0]) for call in calls]
    in_shape, out_shape = shapes[0]
    flaw = _odd_call(module, calls) or why_not_linear(module, in_shape)
    if not isinstance(module, nn.Linear):
        transposed = isinstance(module, nn.ConvTranspose2d)
        return Layer(
            name=name,
            kind="transposed" if transposed else "conv",
            in_channels=module.in_channels,
            out_channels=module.out_channels,
            kernel_size=(module.kernel_size[0], module.kernel_size[1]),
            stride=(module.stride[0], module.stride[1]),
            groups=module.groups,
            in_size=(in_shape[-2], in_shape[-1]),
            out_size=(out_shape[-2], out_shape[-1]),
            positions=sum(
                into.numel() // module.in_channels if transposed else out.numel() // module.out_channels
                for into, out in shapes
            ),
            bias=module.bias is not None,
            calls=len(shapes),
            flaw=flaw,
        )
    tokens = [out.numel() // module.out_features for _, out in shapes]
    return Layer(
        name=name,
        kind="linear",
        in_channels=module.in_features,
        out_channels=module.out_features,
        kernel_size=(1, 1),
        stride=(1, 1),
        groups=1,
        in_size=(1, tokens[0]),
        out_size=(1, tokens[0]),
        positions=sum(tokens),
        bias=module.bias is not None,
        calls=len(shapes),
        flaw=flaw,
    )


def _odd_call(module: nn.Module, calls: Sequence[_Call]) -> str | None:
    """Return why the calls of a layer are not those of a matrix product, or None."""
    kind = type(module).__name__
    if any(len(call.into) > 1 for call in calls):
        return f"({kind}) reads more than one tensor"
    if any(len(call.out) > 1 for call in calls):
        return f"({kind}) returns more than one tensor"
    if not all(has_batch_axis(module, call.into[0]) for call in calls):
        return f"({kind}) reads its input without a batch axis"
    return None
