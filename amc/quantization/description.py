"""What a quantized network is, apart from its tensors: one frozen value that serves every runtime."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from amc.digest import digest
from amc.errors import AmcError, FileError, SettingError
from amc.quantization.settings import INTEGER, METHODS, check_bits

VERSION = 1
PLACEMENTS = ("graph", "modules")


@dataclass(frozen=True)
class Activation:
    """The 8-bit grid of an activation: ``(integer - zero_point) * scale``, integers from 0 to 255."""

    name: str
    scale: float
    zero_point: int


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer with integer weights, signed and symmetric around 0.

    Attributes:
        name: name of its module; ``#2`` and so on for further calls of the same module.
        kind: ``conv`` or ``linear``.
        bits: of its weights; 1 for signs alone.
        block: inputs of an output channel that share a scale; 0 for one scale a channel.
        rounding: how the weights were rounded: ``nearest``, ``moments``, or ``learned`` in a training.
        input: name of the activation that it reads; None where that is float or measured at run time.
    """

    name: str
    kind: str
    bits: int
    block: int
    rounding: str
    input: str | None = None


@dataclass(frozen=True)
class FloatLayer:
    """A layer that stays float, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Quantization:
    """A quantized network, apart from its tensors.

    Attributes:
        method: see ``amc.quantization.settings.METHODS``.
        placement: ``graph``, with batch norms folded and activations fused, or ``modules``, where only the
            inputs and the weights of layers are quantized, as the forward pass cannot be exported.
        network: digest of the float network's state dict.
        layers, activations, left_float: the parts, in forward order.
        weights: file of the float network, relative to this file.
        tensors: digest of the integers and scales.
        model: description of the dense network (``amc.models.ModelSpec.to_json()``), if it has one.
        settings: settings that it was made with.
    """

    method: str
    placement: str
    network: str
    layers: tuple[QuantizedLayer, ...] = ()
    activations: tuple[Activation, ...] = ()
    left_float: tuple[FloatLayer, ...] = ()
    weights: str = ""
    tensors: str = ""
    model: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the parts.

        Raises:
            FileError: a part is impossible, or belongs to no other.
        """
        if self.method not in METHODS or self.placement not in PLACEMENTS:
            raise FileError(f"quantization has method {self.method!r} and placement {self.placement!r}")
        if self.layers and self.method not in INTEGER:
            raise FileError(f"quantization has integer layers with method {self.method!r}")
        for layer in self.layers:
            _check_layer(layer)
        for each in self.activations:
            if not 0 <= each.zero_point <= 255 or not 0 < each.scale < float("inf"):
                raise FileError(
                    f"activation {each.name!r} has scale {each.scale} and zero point {each.zero_point}; "
                    "expected a positive scale and 0 to 255"
                )
        known = {each.name for each in self.activations}
        for layer in self.layers:
            if layer.input is not None and layer.input not in known:
                raise FileError(f"layer {layer.name!r} reads activation {layer.input!r}, which is not there")

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, with a digest of itself; ``from_json`` inverts it exactly."""
        content = {"_version": VERSION, **asdict(self)}
        return {**content, "digest": _digest(content)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> Quantization:
        """Read the JSON form.

        Args:
            where: names the source of ``data`` in messages.

        Raises:
            FileError: another version, a malformed field, or a file that was changed by hand.
        """
        if data.get("_version") != VERSION:
            raise FileError(f"{where} has _version {data.get('_version')!r}; this release reads {VERSION}")
        content = {key: value for key, value in data.items() if key != "digest"}
        if data.get("digest") != _digest(content):
            raise FileError(
                f"{where} does not have the digest that it states; likely cause: edited by hand: run "
                "stage quantize again"
            )
        del content["_version"]
        try:
            parts: dict[str, Any] = {
                "layers": tuple(QuantizedLayer(**each) for each in content.pop("layers")),
                "activations": tuple(Activation(**each) for each in content.pop("activations")),
                "left_float": tuple(FloatLayer(**each) for each in content.pop("left_float")),
            }
            return cls(**parts, **content)
        except (KeyError, TypeError, AttributeError, AmcError) as error:
            raise FileError(
                f"{where} is malformed: {error}; expected the fields of quantization.json"
            ) from error


def _check_layer(layer: QuantizedLayer) -> None:
    try:
        if layer.bits != 1:
            check_bits(layer.bits)
    except SettingError as error:
        raise FileError(f"layer {layer.name!r} has {layer.bits} bits, which are not supported") from error
    if layer.kind not in ("conv", "linear") or layer.block < 0:
        raise FileError(f"layer {layer.name!r} has kind {layer.kind!r} and block {layer.block}")


def _digest(content: Mapping[str, Any]) -> str:
    # Through JSON once: a file gives lists where a value has tuples.
    return digest(json.dumps(content, sort_keys=True, ensure_ascii=False))
