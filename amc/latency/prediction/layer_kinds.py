"""Single layers as networks, so that a runtime can time each at any width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amc.graph.groups import Graph
from amc.runtimes.protocol import Shape


@dataclass(frozen=True, order=True)
class LayerKind:
    """All properties of a layer, apart from its widths, that its latency depends on.

    Attributes:
        kind: ``conv``, ``depthwise``, ``grouped``, ``transposed`` or ``linear``.
        kernel, stride, padding, dilation: (height, width); 1, 1, 0, 1 for a linear layer.
        groups: convolution groups; 1 for a depthwise layer, whose groups follow its width.
        size: (height, width) of the input; (1, tokens) for a linear layer.
        norm: whether a batch norm follows. The layer is then timed with it and a ReLU, which most runtimes
            fuse with the layer, whatever its own activation; without one, it is timed alone. The fit of a
            latency model takes up the rest.
    """

    kind: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    size: tuple[int, int]
    norm: bool

    @property
    def family(self) -> str:
        """The class of layers that share a systematic error: linear, depthwise, pointwise or spatial."""
        if self.kind in ("linear", "depthwise"):
            return self.kind
        return "pointwise" if self.kernel == (1, 1) else "spatial"

    def __str__(self) -> str:
        """Describe the layer in a few words."""
        height, width = self.size
        if self.kind == "linear":
            return f"linear on {width} token{'s' if width > 1 else ''}"
        return f"{self.kind} {self.kernel[0]}x{self.kernel[1]}/{self.stride[0]} on {height}x{width}"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, which ``from_json`` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LayerKind:
        """Read the JSON form."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**fields)

    def input_shape(self, inputs: int) -> Shape:
        """Return the shape of one image, (C, H, W), for ``inputs`` channels."""
        return (inputs, *self.size)

    def network(self, inputs: int, outputs: int) -> nn.Module:
        """Return the layer alone with ``inputs`` and ``outputs`` channels and random weights."""
        if self.kind == "linear":
            return _Tokens(nn.Linear(inputs, outputs))
        if self.kind == "transposed":
            return nn.Sequential(
                nn.ConvTranspose2d(
                    inputs,
                    outputs,
                    self.kernel,
                    self.stride,
                    self.padding,
                    groups=self.groups,
                    dilation=self.dilation,
                )
            )
        groups = outputs if self.kind == "depthwise" else self.groups
        conv = nn.Conv2d(
            inputs, outputs, self.kernel, self.stride, self.padding, self.dilation, groups, bias=not self.norm
        )
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU()) if self.norm else nn.Sequential(conv)


class _Tokens(nn.Module):
    """A linear layer on images of height 1 whose pixels are tokens."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, image: Tensor) -> Tensor:
        """Map (N, C, 1, T) to (N, T, outputs), or to (N, outputs) for one token."""
        if image.shape[-1] == 1:
            return self.linear(torch.flatten(image, 1))
        return self.linear(image.flatten(2).transpose(1, 2))


def layer_kinds(graph: Graph, model: nn.Module) -> tuple[LayerKind, ...]:
    """Return the kind of every layer of the graph, in its order."""
    modules = dict(model.named_modules())
    kinds = []
    for layer in graph.layers:
        module = modules[layer.name]
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            kinds.append(LayerKind("linear", (1, 1), (1, 1), (0, 0), (1, 1), 1, layer.in_size, False))
            continue
        kind = "depthwise" if layer.depthwise else "grouped" if layer.groups > 1 else "conv"
        if layer.kind == "transposed" and not layer.depthwise:
            kind = "transposed"
        # A depthwise transposed convolution is timed as a convolution with as many taps: from its output.
        backwards = layer.kind == "transposed" and layer.depthwise
        kinds.append(
            LayerKind(
                kind=kind,
                kernel=layer.kernel_size,
                stride=(1, 1) if backwards else layer.stride,
                padding=_padding(module),
                dilation=(module.dilation[0], module.dilation[1]),
                groups=1 if layer.depthwise else layer.groups,
                size=layer.out_size if backwards else layer.in_size,
                norm=layer.name in graph.norm_after,
            )
        )
    return tuple(kinds)


def _padding(module: nn.Conv2d | nn.ConvTranspose2d) -> tuple[int, int]:
    """Return the padding in pixels, (height, width); that of ``same`` holds for odd kernels."""
    if isinstance(module.padding, str):
        if module.padding == "valid":
            return (0, 0)
        height, width = ((k - 1) * d // 2 for k, d in zip(module.kernel_size, module.dilation, strict=True))
        return (height, width)
    return (module.padding[0], module.padding[1])


def spread(values: Sequence[int], points: int) -> tuple[int, ...]:
    """Choose at most ``points`` of ascending values, both ends included, as evenly spaced as possible."""
    if len(values) <= points:
        return tuple(values)
    low, high = values[0], values[-1]
    wanted = [low + (high - low) * i / (points - 1) for i in range(points)]
    return tuple(sorted({min(values, key=lambda value: abs(value - goal)) for goal in wanted}))
